"""A valid command line, and one that must be refused; uses the demo's models, no Ray."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"
Preflight = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here, and more threads only wait for each other; engines of other tests keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small training file."""
    path = tmp_path / "train.jsonl"
    rows = [{"id": str(i), "problem": f"{i}+1", "answer": str(i + 1)} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def arguments(tmp_path: Path, data: Path) -> list[str]:
    """A valid command line."""
    return [
        *("train", "--config", str(ROOT / "configs" / "demo.yaml"), "--dry-run"),
        *(
            "--runs-path",
            str(tmp_path / "runs"),
            "--data.train_path",
            str(data),
            "--evaluation.data_path",
            str(data),
        ),
        *("--student.model_path", str(MODELS / "student"), "--teacher.model_path", str(MODELS / "teacher")),
    ]


@pytest.fixture
def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run with extra options; returns the error's only line after checking that nothing was left behind."""

    import launch
    from settings.exit_codes import BAD_INPUT

    def run(*options: str) -> str:
        assert launch.main([*arguments, *options]) == BAD_INPUT
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert not (tmp_path / "runs").exists()
        return lines[0]

    return run


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A copy of the demo's teacher that may be changed."""
    return Path(shutil.copytree(MODELS / "teacher", tmp_path / "teacher"))


@pytest.fixture
def preflight(
    arguments: list[str], teacher: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Preflight:
    """Make the checks that need no engines, with that teacher; exit code and results by key."""

    import launch
    from settings.exit_codes import FINISHED

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        given = ["preflight", *arguments[1:], "--teacher.model_path", str(teacher), "--json", *options]
        code = launch.main(given)
        report = json.loads(capsys.readouterr().out)
        assert not (tmp_path / "runs").exists()
        assert report["ok"] == (code == FINISHED)
        return code, {row["key"]: row for row in report["checks"]}

    return run
