"""What a run leaves on disk: refused or found, appended whole, mended after a crash, void where rolled back."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from records.events import Events, reason_of
from records.files import append_row, read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder, describe_environment
from settings.run import RunConfig
from settings.run_files import load_config


def config(path: Path, **settings: Any) -> RunConfig:
    """A configuration whose run folder is `path`/first."""
    values = {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}}
    return RunConfig.model_validate({"run_name": "first", "runs_path": str(path), **values, **settings})


def opened(path: Path) -> RunFolder:
    """A new run folder."""
    folder = RunFolder.of(config(path), resume=False)
    folder.open(config(path))
    return folder


def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {"a": 1})
    append_row(path, {"a": "line\nbreak"})
    assert read_rows(path) == [{"a": 1}, {"a": "line\nbreak"}]


def test_an_existing_run_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with pytest.raises(ValueError, match=r"run_name: the run folder .*first already exists; choose another name"):
        RunFolder.of(config(tmp_path), resume=False)
    assert list((tmp_path / "first").iterdir()) == []


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume: there is no run folder .*first"):
        RunFolder.of(config(tmp_path), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_an_opened_folder_records_configuration_and_environment(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    assert load_config(str(folder.path / "config.yaml")) == config(tmp_path)
    environment = json.loads((folder.path / "environment.json").read_text())
    assert set(environment) == {
        *("time", "python", "platform", "cpus", "poweropd", "packages", "git_commit", "git_is_dirty"),
    }
    assert {"ray", "torch", "pyarrow"} <= set(environment["packages"])
    assert folder.checkpoints.is_dir()


def test_the_environment_is_described_without_git_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", too_slow)
    environment = describe_environment()
    assert (environment["git_commit"], environment["git_is_dirty"]) == (None, None)


def test_opening_again_mends_what_a_crash_cut_off(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.add_step({"step": 1}, ["a", "b"])
    with folder.ledger.open("a") as file:
        file.write('{"step": 2, "ui')
    folder = RunFolder.of(config(tmp_path), resume=True)
    folder.open(config(tmp_path))
    folder.add_step({"step": 2}, ["c"])
    assert valid_ledger(folder.ledger) == {1: ["a", "b"], 2: ["c"]}


def test_a_rollback_voids_the_rows_above_it(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for step in (1, 2, 3):
        folder.add_step({"step": step, "attempt": 0}, [f"old-{step}"])
    folder.roll_back_to(1)
    assert valid_ledger(folder.ledger) == {1: ["old-1"]}
    assert [row["step"] for row in folder.valid_metrics()] == [1]
    folder.add_step({"step": 2, "attempt": 1}, ["new-2"])
    assert valid_ledger(folder.ledger) == {1: ["old-1"], 2: ["new-2"]}
    assert folder.valid_metrics() == [{"step": 1, "attempt": 0}, {"step": 2, "attempt": 1}]


def test_events_carry_time_and_details_and_need_no_file(tmp_path: Path) -> None:
    Events().add("nowhere", reason="only logged")
    Events(tmp_path / "events.jsonl").add("worker_died", worker="teacher-0", reason="killed")
    [row] = read_rows(tmp_path / "events.jsonl")
    assert row.pop("time") > 1.7e9
    assert row == {"event": "worker_died", "worker": "teacher-0", "reason": "killed"}


def test_a_reason_is_one_line_even_of_an_error_without_a_message() -> None:
    assert reason_of(ValueError("first\n  the cause\n\n")) == "ValueError: the cause"
    assert reason_of(TimeoutError()) == "TimeoutError"
