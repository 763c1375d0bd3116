"""Rows are the same from every format, and whatever cannot be read is one line that names it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inputs.row_files import COMPRESSIONS, SUFFIXES
from inputs.rows import open_data
from tests.unit.data_files import COMPRESSED, FILES, gzipped, json_lines, json_list, parquet, zstd

pytestmark = pytest.mark.timeout(60)

ROWS = [{"id": str(i), "problem": f"{i} + \u00e9", "answer": str(i)} for i in range(7)]
"""Text alone: not every format has types."""
LINES, LIST = json_lines(ROWS), json_list(ROWS)

SAME = {f"a{suffix}": write(ROWS) for suffix, write in FILES.items()}
SAME |= {
    f"{name}{end}": compress(content) for name, content in SAME.items() for end, compress in COMPRESSED.items()
}
SAME |= {
    "a.dat": LINES,
    "lines.json": LINES,
    "mark.json": b"\xef\xbb\xbf" + LIST,
    "two.jsonl.gz": gzipped(LINES[:50]) + gzipped(LINES[50:]),
    "A.PARQUET.GZ": gzipped(parquet(ROWS)),
}


def rows_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in open_data(str(path), field="data.train_path", **options).rows]


def mistake(path: Path | str, **options: Any) -> str:
    """The line that a data set is refused with."""
    with pytest.raises(ValueError, match=r"\w") as error:
        rows_of(path, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain folder with two splits in two formats, in the folder and in `data/`."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "train-00001-of-00002.parquet").write_bytes(parquet(ROWS[3:]))
    (tmp_path / "set" / "data" / "train-00000-of-00002.parquet").write_bytes(parquet(ROWS[:3]))
    (tmp_path / "set" / "math_test.jsonl").write_bytes(LINES[: LINES.index(b"\n") + 1])
    (tmp_path / "set" / "notes.txt").write_text("not data")
    return tmp_path / "set"


@pytest.mark.parametrize("name", SAME)
def test_every_format_of_a_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SAME[name])
    assert rows_of(tmp_path / name) == ROWS
    assert open_data(str(tmp_path / name), field="f").files == [str(tmp_path / name)]


def test_every_format_and_compression_is_tested() -> None:
    assert (set(FILES), set(COMPRESSED)) == (set(SUFFIXES), set(COMPRESSIONS))


def test_a_file_has_no_split_and_no_subset(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert rows_of(tmp_path / "a.jsonl", split="test", subset="main", revision="x") == ROWS


def test_rows_come_with_line_or_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + LINES)
    (tmp_path / "a.parquet").write_bytes(parquet(ROWS))
    for name, first in (("a.jsonl", 2), ("a.parquet", 1)):
        path = str(tmp_path / name)
        assert [place for place, _ in open_data(path, field="f").rows] == [f"{path}:{first + i}" for i in range(7)]


def test_files_of_a_folder_belong_to_the_split_that_their_names_hold(folder: Path) -> None:
    assert rows_of(folder) == ROWS
    assert rows_of(folder, split="test") == rows_of(folder, split="eval") == ROWS[:1]
    assert mistake(folder, split="validation").endswith(
        "no split 'validation', only test, train (nearest valid: train)"
    )


def test_a_subset_of_a_folder_is_a_folder_in_it(folder: Path) -> None:
    assert rows_of(folder.parent, subset="set") == ROWS
    line = mistake(folder.parent, subset="sets")
    assert "no subset 'sets'" in line
    assert "nearest valid: set)" in line


def test_a_broken_file_in_a_folder_names_the_setting_and_the_file(folder: Path) -> None:
    (folder / "train_more.jsonl").write_bytes(b'{"id": 1}\n[]\n')
    line = mistake(folder)
    assert line.startswith("data.train_path: ")
    assert "train_more.jsonl:2: needs an object, not a list" in line


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1+1\n")
    assert f"holds no file that ends in {', '.join(SUFFIXES)}" in mistake(tmp_path)


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}).save_to_disk(
        str(tmp_path / "more")
    )
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "more") == ROWS
    assert rows_of(tmp_path / "more", split="test") == ROWS[:2]
    assert mistake(tmp_path / "more", split="tset").endswith("only train, test (nearest valid: test)")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    assert f"{tmp_path / 'one'} cannot be read" in mistake(tmp_path / "one")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caches of `datasets` in a folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/*.parquet}, {split: test, path: test/*.parquet}]
- config_name: other
  data_files: test/*.parquet
---
"""


@pytest.fixture
def clone(tmp_path: Path, cache: Path) -> Path:
    """A folder as it is cloned from the hub: its card says what is in it."""
    for name, rows in (("main", ROWS), ("test", ROWS[:2])):
        (tmp_path / "clone" / name).mkdir(parents=True)
        (tmp_path / "clone" / name / "0.parquet").write_bytes(parquet(rows))
    (tmp_path / "clone" / "README.md").write_text(CARD)
    return tmp_path / "clone"


def test_a_folder_with_a_card_has_the_subsets_of_the_card(clone: Path) -> None:
    assert rows_of(clone, subset="main") == ROWS
    assert rows_of(clone, subset="main", split="test") == rows_of(clone, subset="other") == ROWS[:2]
    assert open_data(str(clone), subset="main", field="f").files[0].endswith(".arrow")
    assert "['main', 'other']" in mistake(clone)
    assert "'more' not found. Available: ['main', 'other']" in mistake(clone, subset="more")
    assert "has no split 'dev', only train, test" in mistake(clone, subset="main", split="dev")


def test_a_data_set_of_the_hub_is_read_from_the_cache_in_offline_mode(
    clone: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of(clone, subset="main")
    [prepared] = (path.parent for path in cache.glob("clone/main/*/*/dataset_info.json"))
    kept = cache / "owner___sums" / "main" / prepared.parent.name / prepared.name
    shutil.copytree(prepared, kept)
    for path in kept.glob("*.arrow"):
        path.rename(kept / f"sums-{path.name.partition('-')[2]}")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert rows_of("owner/sums", subset="main", split="test") == ROWS[:2]
    line = mistake("owner/other")
    assert "owner/other" in line
    assert "not in the cache, and offline mode is on" in line


def test_a_revision_and_a_name_that_are_no_data_set_are_told_by_the_hub(hub: Callable[..., Any]) -> None:
    with hub(404, {"X-Error-Code": "RepoNotFound"}):
        assert "the hub has no such data set" in mistake("owner/none")
    with hub(404, {"X-Error-Code": "RevisionNotFound"}):
        assert "owner/none has no revision 'v2' in the hub" in mistake("owner/none", revision="v2")
    with hub(403, {"X-Error-Code": "GatedRepo"}):
        assert "only to those who were granted access" in mistake("owner/none")


def test_a_hub_that_does_not_answer_is_waited_for_once(
    hub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inputs.rows.HUB_TIMEOUT_S", 0.3)
    with hub(None, {}):
        assert "data.train_path: no such file or folder: owner/none, and the hub cannot be asked" in mistake(
            "owner/none"
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A hub on this machine with one answer for everything, or none (the connection stays open)."""

    @contextmanager
    def serving(status: int | None, headers: dict[str, str]) -> Iterator[None]:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if status is None:
                    self.rfile.read(1)  # until the other side gives up
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any, **__: Any) -> None:
                """Print nothing."""

        server = HTTPServer(("127.0.0.1", 0), Answer)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=10)

    return serving


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 and more", "is broken"),
        ("a.parquet", b"", "is broken"),
        ("a.parquet", parquet(ROWS)[:-20], "is broken"),
        ("a.json", LIST[:-3], "not valid JSON"),
        ("a.json", b"[1, 2]", ":1: needs an object, not a int"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.json", b'{"a":\n 1}', ":1: not valid JSON"),
        ("a.jsonl.gz", LINES, "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzipped(LINES)[:-12], "is broken"),
        ("a.jsonl.gz", gzipped(LINES)[:20] + b"\xff" * 40, "is broken"),
        ("a.jsonl.zst", LINES, "cannot be read"),
        ("a.jsonl.zst", zstd(LINES)[:-12], "a.jsonl.zst"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    line = mistake(tmp_path / name)
    assert str(tmp_path / name) in line
    assert message in line


def test_a_text_of_parquet_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"problem": texts}), tmp_path / "a.parquet")
    assert f"{tmp_path / 'a.parquet'}: one of the rows 1 to 1 is broken" in mistake(tmp_path / "a.parquet")


@pytest.mark.parametrize("path", ["", "no/such/file.jsonl", "none", "\0", "a/b/c", "/no/such"])
def test_a_path_that_is_nothing_is_not_looked_for_in_the_hub(path: str, hub: Callable[..., Any]) -> None:
    assert mistake(path).startswith("data.train_path: no such file: ")
