"""The chaos command: the same seed kills the same, bad options are refused, and the report reads the ledger."""

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import launch
from commands.chaos.command import Striker
from commands.chaos.report import Kill, as_lines, as_table, report
from commands.chaos.schedule import KINDS, Schedule, read_kinds, read_seconds, victims
from records.files import append_row
from records.run_folder import RunFolder
from settings.exit_codes import BAD_INPUT


def test_kills_come_at_regular_times_and_kinds_take_turns() -> None:
    kills = [*Schedule(30.0, 600.0, ("rollout", "teacher", "learner"), seed=0).kills()]
    assert [time for time, _ in kills] == [30.0 * (i + 1) for i in range(20)]
    kinds = [kind for _, kind in kills]
    for i in range(0, 18, 3):
        assert sorted(kinds[i : i + 3]) == ["learner", "rollout", "teacher"]


def test_the_same_seed_kills_the_same_and_another_does_not() -> None:
    def kinds(seed: int) -> list[str]:
        return [kind for _, kind in Schedule(1.0, 60.0, KINDS, seed=seed).kills()]

    assert kinds(3) == kinds(3)
    assert kinds(3) != kinds(4)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("10m", 600.0), ("1.5h", 5400.0), ("500ms", 0.5), ("7", 7.0)]
)
def test_times_are_read_with_their_units(text: str, seconds: float) -> None:
    assert read_seconds("--every", text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-3s", "ten", "10 days", "1e9s", "9" * 40])
def test_a_time_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="--every must be a time > 0 such as 30s, 10m or 1h"):
        read_seconds("--every", text)


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    assert read_kinds("rollout, node,rollout") == ("rollout", "node")
    with pytest.raises(ValueError, match=r"got 'teachers' \(nearest valid: teacher\)"):
        read_kinds("rollout,teachers")


@pytest.mark.parametrize(
    "options", [["--every", "no"], ["--kill", "all"], ["--every", "2h"], ["--run", "none"], ["--now"]]
)
def test_bad_options_end_with_one_line_and_code_2(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known").mkdir()
    given = ["chaos", "--runs-path", str(tmp_path), "--run", "known", *options]
    if options[0] == "--run":
        given = ["chaos", "--runs-path", str(tmp_path), *options]
    assert launch.main(given) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_only_healthy_workers_with_a_process_are_victims_and_every_teacher_is_a_teacher() -> None:
    workers: list[dict[str, Any]] = [
        {"name": "teacher-0", "role": "teacher", "pid": 1, "state": "healthy"},
        {"name": "teacher-code-0", "role": "teacher-code", "pid": 2, "state": "healthy"},
        {"name": "teacher-1", "role": "teacher", "pid": None, "state": "healthy"},
        {"name": "teacher-2", "role": "teacher", "pid": 3, "state": "restarting"},
        {"name": "rollout-0", "role": "rollout", "pid": 4, "state": "healthy"},
    ]
    assert [worker["name"] for worker in victims("teacher", workers)] == ["teacher-0", "teacher-code-0"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of 5 steps of 2 slots, of which slot 3 is still open, that fell back from step 3 to 2."""
    folder = RunFolder(tmp_path)
    steps = [(1, [0, 1]), (2, [2, 4]), (3, [5, 6]), ("rollback_to", 2), (3, [5, 7]), (4, [6, 8])]
    for step, slots in steps:
        if step == "rollback_to":
            append_row(folder.ledger, {"rollback_to": 2})
        else:
            append_row(folder.ledger, {"step": step, "uids": [f"{slot}-0-p-0" for slot in slots]})
            row = {"step": step, "time_s": 100.0 + 10 * int(step), "staleness/max": 1.0, "tokens_trained": 50}
            append_row(folder.metrics, row)
    for event in [
        {"time": 121.0, "event": "worker_readmitted", "worker": "rollout-0"},
        {"time": 133.0, "event": "worker_readmitted", "worker": "rollout-0"},
        {"time": 141.5, "event": "learner_restarted"},
    ]:
        append_row(folder.events, event)
    return folder


KILLS = [
    Kill(120.0, "rollout", ("rollout-0",)),
    Kill(130.0, "rollout", ("rollout-0",)),
    Kill(140.0, "learner", ("learner-1",)),
    Kill(150.0, "teacher", ("teacher-0",)),
]


def test_the_report_says_how_long_each_kind_took_to_come_back(folder: RunFolder) -> None:
    frontier = {"version": 4, "lowest_untrained": 3, "trained_above": [4, 5, 6, 7, 8]}
    numbers = report(folder, KILLS, began=0.0, frontier=frontier, bound=1)
    assert numbers["kills"] == {"rollout": 2, "learner": 1, "teacher": 1}
    assert numbers["recovery_s"]["rollout"] == {"median": 2.0, "worst": 3.0, "not_seen": 0}
    assert numbers["recovery_s"]["learner"] == {"median": 1.5, "worst": 1.5, "not_seen": 0}
    assert numbers["recovery_s"]["teacher"] == {"median": None, "worst": None, "not_seen": 1}
    assert (numbers["lost"], numbers["trained_twice"], numbers["bound_kept"]) == (0, 0, True)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(as_table("run", numbers), *as_lines(numbers | {"missed": 2}))
    assert "2 kills left out" in shown.get()
    assert "lost 0, trained twice 0" in shown.get()


def test_a_slot_that_counts_as_trained_and_is_not_in_the_ledger_is_lost(folder: RunFolder) -> None:
    frontier = {"version": 4, "lowest_untrained": 5, "trained_above": [5, 6, 7, 8]}
    assert report(folder, [], began=0.0, frontier=frontier, bound=1)["lost"] == 1


def test_a_slot_in_two_steps_that_count_was_trained_twice(folder: RunFolder) -> None:
    append_row(folder.ledger, {"step": 5, "uids": ["0-0-p-0", "9-0-p-0"]})
    assert report(folder, [], began=0.0, frontier=None, bound=1)["trained_twice"] == 1


def test_the_process_that_kills_refuses_where_its_parent_is_no_raylet_and_what_is_no_process_of_ray() -> None:
    with pytest.raises(RuntimeError, match="should be the raylet"):
        Striker().check()
    assert not Striker().kill_worker(os.getpid())


def test_a_broken_bound_is_said(folder: RunFolder) -> None:
    numbers = report(folder, [], began=0.0, frontier=None, bound=0)
    assert not numbers["bound_kept"]
    assert "BROKEN" in "\n".join(as_lines(numbers))


def test_what_was_before_is_the_usual_step_of_the_newest_start_and_more_than_all_is_never_kept(
    tmp_path: Path,
) -> None:
    """A slow first step, an evaluation, or hours between two starts of a run made kills look like a gain."""
    folder = RunFolder(tmp_path)
    append_row(folder.events, {"time": 0.0, "event": "run_started"})
    append_row(folder.events, {"time": 9000.0, "event": "run_started"})
    times = [(1, 100.0, 50.0), (2, 9100.0, 80.0), (3, 9110.0, 10.0), (4, 9120.0, 10.0), (5, 9130.0, 10.0)]
    times += [(6, 9142.0, 12.0), (7, 9160.0, 18.0), (8, 9180.0, 20.0)]
    for step, time_s, step_s in times:
        row = {"step": step, "time_s": time_s, "time/step_s": step_s, "tokens_trained": 50, "staleness/max": 0}
        append_row(folder.metrics, row)
        append_row(folder.ledger, {"step": step, "uids": [f"{step}-0-p-0"]})
    numbers = report(folder, [], began=9130.5, frontier=None, bound=1)
    assert (numbers["tokens_per_s"], numbers["tokens_per_s_before"]) == (3.0, 5.0)
    assert as_lines(numbers)[-1] == "trained tokens/s 3, before 5: 60% kept"
    faster = as_lines(numbers | {"tokens_per_s": 14.2})[-1]
    assert faster == "trained tokens/s 14, before 5: all kept"
