"""`launch.py export`: every mistake is one line that names the option, and nothing is written."""

from pathlib import Path

import pytest

import launch
from commands.export import read_request
from commands.parser import build_parser
from records import checkpoints
from records.checkpoints import CheckpointManifest
from settings.exit_codes import BAD_INPUT
from settings.load import save_config
from settings.run import RunConfig


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two runs: `first` has checkpoints of steps 4 and 8, `empty` has none."""
    values = {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}}
    config = RunConfig.model_validate(values | {"run_name": "first", "runs_path": "elsewhere"})
    for name in ("first", "empty"):
        (tmp_path / name).mkdir()
        save_config(config.model_copy(update={"run_name": name}), tmp_path / name / "config.yaml")
    for step in (4, 8):
        path = checkpoints.step_path(tmp_path / "first" / "checkpoints", step)
        checkpoints.start(path)
        checkpoints.commit(path, CheckpointManifest(1, 2, "float32", {}, {}))
    return tmp_path


def line(runs: Path, *options: str, run: str = "first") -> list[str]:
    """A command line."""
    return ["export", "--run", run, "--runs-path", str(runs), *options]


def test_by_default_the_newest_checkpoint_goes_to_the_folder_of_the_run(runs: Path) -> None:
    request = read_request(build_parser(None).parse_args(line(runs)))
    assert (request.step, request.out, request.dtype) == (8, runs / "first" / "export_step_8", "bfloat16")
    assert request.config.runs_path == str(runs)
    chosen = build_parser(None).parse_args(
        line(runs, "--step", "4", "--dtype", "float32", "--out", str(runs / "x"))
    )
    request = read_request(chosen)
    assert (request.step, request.out, request.dtype) == (4, runs / "x", "float32")


@pytest.mark.parametrize(
    ("run", "options", "error"),
    [
        ("absent", [], "--run: there is no run folder {runs}/absent with a config.yaml"),
        ("../first", [], "--run must be letters"),
        ("empty", [], "--run: {runs}/empty/checkpoints holds no checkpoint"),
        ("first", ["--step", "5"], "--step: {runs}/first/checkpoints has no step 5 (there are: 4, 8)"),
        ("first", ["--out", "{runs}/first"], "--out: {runs}/first already exists"),
        ("first", ["--out", "{runs}/a/b"], "--out: there is no folder {runs}/a"),
        ("first", ["--private"], "--private: only with --push"),
        ("first", ["--push", "name"], "--push: a repository is named organisation/name, got 'name'"),
        ("first", ["--max-steps", "5"], "unexpected argument '--max-steps'"),
        ("first", [], "teacher.model_path: no such model folder: t"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    runs: Path, capsys: pytest.CaptureFixture[str], run: str, options: list[str], error: str
) -> None:
    before = sorted(runs.rglob("*"))
    given = [option.format(runs=runs) for option in options]
    assert launch.main(line(runs, *given, run=run)) == BAD_INPUT
    [said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"error: {error.format(runs=runs)}")
    assert sorted(runs.rglob("*")) == before
