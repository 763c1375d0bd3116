"""Whatever the input is: a command works, or ends with exit code 2, one clear line, and nothing written."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import launch
from settings.exit_codes import BAD_INPUT, FINISHED
from tests.unit.conftest import MODELS, ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")
DEAD = "127.0.0.1:1"
"""Nothing listens there, so a command that gets so far is told at once."""

OUTCOMES = (FINISHED, BAD_INPUT)


def arguments_of(folder: Path, *options: str, config: str = DEMO) -> list[str]:
    """A dry run of `train` with the demo's models and a data file in `folder`; it is valid without options."""
    data = folder / "train.jsonl"
    if not data.exists():
        data.write_text('{"id": "0", "problem": "1+1", "answer": "2"}\n')
    return [
        *("train", "--config", config, "--dry-run", f"--runs-path={folder / 'runs'}"),
        *(f"--data.train_path={data}", "--evaluation.data_path=null"),
        *(f"--student.model_path={MODELS / 'student'}", f"--teacher.model_path={MODELS / 'teacher'}"),
        *options,
    ]


def check(arguments: Sequence[str], folder: Path) -> int:
    """Run a command in this process, check what it printed and left, and return its exit code."""
    before = _content(folder)
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code = launch.main(list(arguments))
        except SystemExit as ended:  # --help
            code = ended.code
    lines = errors.getvalue().splitlines()
    assert code in OUTCOMES, (code, lines)
    assert _content(folder) == before, "something was written"
    if code == BAD_INPUT:
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
        assert len(lines[0]) > len("error: ") + 5, lines
        assert "Traceback" not in lines[0], lines
    else:
        assert lines == []
    return code


def refusal(arguments: Sequence[str], folder: Path) -> str:
    """The one line that a command is refused with."""
    errors = io.StringIO()
    assert check(arguments, folder) == BAD_INPUT
    with redirect_stderr(errors):
        launch.main(list(arguments))
    return errors.getvalue().strip()


def _content(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.sampled_from([1e308, -1e308, 1e-320, 0.1, 1.0]),
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        ["", "null", "none", "auto", "../x", "/dev/null", "/", ".", "a/b", "~", "x" * 5000, "\x00", "\n"]
    ),
    st.sampled_from(
        ["${x}", "${seed}", "${oc.env:HOME}", "${", "$", "{}", "[", "nan", "1e999", "0x10", "2024-13-45"]
    ),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def near(keys: Sequence[str]) -> st.SearchStrategy[str]:
    """One of these dotted keys, or one that is nearly the same."""

    def changed(key: str, place: int, letter: str) -> str:
        place %= len(key)
        return key[:place] + letter + key[place + 1 :]

    known = st.sampled_from(keys)
    return st.one_of(known, known, st.builds(changed, known, st.integers(0, 50), st.sampled_from("._-x[=")))


def with_value(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested mappings with a value at a dotted key; what is in the way is replaced."""
    first, _, rest = key.partition(".")
    if not rest:
        return {**tree, first: value}
    below = tree.get(first)
    return {**tree, first: with_value(below if isinstance(below, Mapping) else {}, rest, value)}
