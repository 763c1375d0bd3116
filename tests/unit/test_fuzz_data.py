"""Any data file either works or is refused with one clear line that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from settings.exit_codes import FINISHED
from tests.examples import examples
from tests.unit.data_files import COMPRESSED, FILES, json_lines
from tests.unit.fuzzing import arguments_of, check, refusal, values

GOOD = b'{"id": "g", "problem": "1+1", "answer": "2"}\n'

REFUSED = {
    "nothing": b"",
    "empty lines": b"\n \n\t\n",
    "a NUL": b"\x00\n",
    "a NUL in a row": GOOD + b'{"problem": "1\x001"}\n',
    "no UTF-8": GOOD + b'{"problem": "\xff\xfe"}\n',
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a list": GOOD + b"[1]\n",
    "no problem": GOOD + b'{"id": "1"}\n',
    "an empty problem": GOOD + b'{"problem": ""}\n',
    "a number as problem": GOOD + b'{"problem": 1}\n',
    "an id twice": GOOD + GOOD,
    "deep brackets": b"[" * 200_000 + b"\n",
    "a deep row": b'{"problem": "1", "id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "a long number": GOOD + b'{"problem": "1", "id": ' + b"9" * 5000 + b"}\n",
    "a list as an id": GOOD + b'{"problem": "1", "id": [1]}\n',
    "a mapping as an answer": GOOD + b'{"problem": "1", "answer": {"a": 1}}\n',
    "a mapping as a source": GOOD + b'{"problem": "1", "source": {"a": 1}}\n',
    "a surrogate as a problem": GOOD + b'{"problem": "\\ud800"}\n',
    "a surrogate as an id": GOOD + b'{"problem": "1", "id": "\\udfff"}\n',
    "a surrogate as an answer": GOOD + b'{"problem": "1", "answer": "\\udfff"}\n',
    "NUL characters": GOOD + b'{"problem": "1", "id": "a\\u0000"}\n',
    "a very long line": GOOD + b'{"problem": "' + b"1+" * 2_100_000 + b'1"}\n',
    "a very long id": GOOD + b'{"problem": "1", "id": "' + b"x" * 100_000 + b'"}\n',
    "half a row": GOOD + b'{"problem": "1+',
}
SERVED = {
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "CRLF": GOOD.replace(b"\n", b"\r\n"),
    "no last line end": GOOD.rstrip(),
    "further keys": b'{"problem": "1+1", "more": {"a": [NaN, 1e999]}}\n',
    "numbers": b'{"problem": "1+1", "id": 1, "answer": 2.5, "source": 3}\n',
    "a key twice": b'{"problem": "1", "problem": "2"}\n',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing may be written to."""
    folder = tmp_path_factory.mktemp("fuzz")
    arguments_of(folder)
    return folder


OTHERS = {f"given{suffix}": write([json.loads(GOOD)]) for suffix, write in FILES.items() if write != json_lines}
OTHERS |= {f"given.jsonl{suffix}": compress(GOOD) for suffix, compress in COMPRESSED.items()}


def reading(folder: Path, content: bytes, name: str = "given.jsonl") -> list[str]:
    """A dry run that reads a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return arguments_of(folder, f"--data.train_path={path}")


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_data_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    line = refusal(reading(folder, content), folder)
    assert "given.jsonl" in line or "data.train_path" in line
    assert len(line) < 1000


@pytest.mark.parametrize("content", SERVED.values(), ids=SERVED.keys())
def test_an_unusual_data_file_is_served(folder: Path, content: bytes) -> None:
    assert check(reading(folder, content), folder) == FINISHED


@pytest.mark.parametrize(
    "path", ["", "/", "/dev/null", "/no/such/file", "x" * 300, "a/" * 3000, "\x00", "/proc/self/mem"]
)
def test_a_path_that_is_no_data_file_is_refused_by_name(folder: Path, path: str) -> None:
    for key in ("data.train_path", "evaluation.data_path"):
        assert key in refusal(arguments_of(folder, f"--{key}={path}"), folder)


@given(content=st.binary(max_size=80))
@examples(10)
def test_random_bytes_are_refused(folder: Path, content: bytes) -> None:
    check(reading(folder, GOOD + content), folder)


rows = st.fixed_dictionaries(
    {},
    optional={
        "id": values,
        "problem": st.one_of(st.just("1+2"), st.text(max_size=20), values),
        "answer": values,
        "source": values,
        "\ud800": values,
    },
)


@given(given_rows=st.lists(rows, max_size=4))
@example(given_rows=[{"problem": "1", "source": "\ud800"}])
@examples(12)
def test_any_rows_work_or_are_refused(folder: Path, given_rows: list[dict[str, Any]]) -> None:
    check(reading(folder, b"".join(json.dumps(row).encode() + b"\n" for row in given_rows)), folder)


@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
@examples(10)
def test_a_changed_byte_works_or_is_refused(folder: Path, place: int, byte: int) -> None:
    check(reading(folder, GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]), folder)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_format_is_served_and_an_empty_or_wrong_one_refused(folder: Path, name: str) -> None:
    assert check(reading(folder, OTHERS[name], name), folder) == FINISHED
    for content in (b"", b"\0" * 100):
        assert name in refusal(reading(folder, content, name), folder)
    check(reading(folder, OTHERS[name][:-5], name), folder)  # not every format notices that it is torn


@given(name=st.sampled_from(sorted(OTHERS)), place=st.integers(0, 2000), byte=st.integers(0, 255))
@examples(12)
def test_a_changed_byte_of_another_format_works_or_is_refused(
    folder: Path, name: str, place: int, byte: int
) -> None:
    content = OTHERS[name]
    place %= len(content)
    check(reading(folder, content[:place] + bytes([byte]) + content[place + 1 :], name), folder)


chats = st.lists(st.fixed_dictionaries({}, optional={"role": values, "content": values}), max_size=3)


@given(
    messages=st.one_of(values, chats),
    column=st.sampled_from(["messages", "messages.0", "messages.0.content", "."]),
)
@examples(12)
def test_any_chat_works_or_is_refused(folder: Path, messages: Any, column: str) -> None:
    path = folder / "chats.jsonl"
    path.write_text(json.dumps({"problem": "1", "messages": messages}) + "\n")
    source = {"path": str(path), "columns": {"messages": column}}
    check(arguments_of(folder, "--data.train_path=null", f"--data.sources={json.dumps([source])}"), folder)
