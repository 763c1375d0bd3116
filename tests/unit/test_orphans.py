"""What a killed driver left: only what provably belongs to its run is ended, and never a live run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.orphans import EVERY_PROCESS, check_has_ended, end_left_over, end_orphans, log_of
from records.events import Events
from records.ownership import SAME_START_S, NotOwnerError, identity_of, is_alive_here, this_process
from records.run_folder import RunFolder

SESSION = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"  # others may run the same test
MINE, OTHERS = "ab" * 28, "cd" * 28


@contextmanager
def process_with(file: Path, mode: str) -> Iterator[psutil.Popen]:
    """A process that has the file open."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    program = "import sys, time; file = open(*sys.argv[1:]); print(1, flush=True); time.sleep(60)"
    line = [sys.executable, "-c", program, str(file), mode]
    process = psutil.Popen(line, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"1\n"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_process_is_ended_if_it_writes_a_log_of_the_session_and_not_if_it_reads_one(tmp_path: Path) -> None:
    logs = tmp_path / SESSION / "logs"
    other = tmp_path / f"{SESSION}0" / "logs"
    with (
        process_with(logs / "raylet.out", "a") as raylet,
        process_with(logs / f"worker-{MINE}-ffffffff-5.out", "a") as worker,
        process_with(logs / "raylet.out", "r") as reader,
        process_with(other / "raylet.out", "a") as another,
    ):
        ended = end_orphans(SESSION, EVERY_PROCESS)
        assert {row["pid"] for row in ended} == {raylet.pid, worker.pid}
        assert {raylet.wait(10), worker.wait(10)} == {-signal.SIGKILL}
        assert reader.is_running()
        assert another.is_running()
        assert end_orphans(SESSION, EVERY_PROCESS) == []


def test_in_a_shared_session_only_the_runs_own_workers_are_ended(tmp_path: Path) -> None:
    logs = tmp_path / SESSION / "logs"
    with (
        process_with(logs / f"worker-{MINE}-ffffffff-5.err", "a") as mine,
        process_with(logs / f"worker-{OTHERS}-01000000-6.err", "a") as others,
        process_with(logs / "raylet.out", "a") as raylet,
    ):
        assert [row["pid"] for row in end_orphans(SESSION, log_of([MINE]))] == [mine.pid]
        assert others.is_running()
        assert raylet.is_running()


def test_a_frozen_process_is_ended_too(tmp_path: Path) -> None:
    with process_with(tmp_path / SESSION / "logs" / "raylet.out", "a") as frozen:
        frozen.send_signal(signal.SIGSTOP)
        assert [row["pid"] for row in end_orphans(SESSION, EVERY_PROCESS)] == [frozen.pid]
        assert frozen.wait(10) == -signal.SIGKILL


def test_a_run_that_is_going_on_is_not_resumed_even_if_its_driver_is_frozen(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    check_has_ended(folder)
    with process_with(tmp_path / "any", "a") as driver:
        folder.write_cluster(identity_of(driver.pid))
        for number in (signal.SIGCONT, signal.SIGSTOP):
            driver.send_signal(number)
            with pytest.raises(ValueError, match=f"--resume: the run is still running: pid {driver.pid} "):
                check_has_ended(folder)
    check_has_ended(folder)


def test_a_run_that_is_starting_is_not_resumed_though_nothing_reaches_it_yet(tmp_path: Path) -> None:
    with process_with(tmp_path / "any", "a") as driver:
        (tmp_path / "owner.json").write_text(json.dumps({"token": "x", **identity_of(driver.pid)}))
        with pytest.raises(ValueError, match=f"--resume: the run is still running: pid {driver.pid} "):
            check_has_ended(RunFolder(tmp_path))
    check_has_ended(RunFolder(tmp_path))


def test_nothing_of_a_living_driver_or_for_a_former_owner_is_ended(tmp_path: Path) -> None:
    folder, later = RunFolder(tmp_path), RunFolder(tmp_path)
    folder.owner.take()
    ended = identity_of(os.getppid()) | {"ticks": 0, "started": 0.0}
    with process_with(tmp_path / SESSION / "logs" / "raylet.out", "a") as raylet:
        folder.write_cluster(identity_of(raylet.pid) | {"session": SESSION, "is_local": True})
        with pytest.raises(ValueError, match="still running"):
            end_left_over(folder, Events())
        folder.write_cluster(ended | {"session": SESSION, "is_local": True})
        later.owner.take()
        with pytest.raises(NotOwnerError):
            end_left_over(folder, Events())
        assert raylet.is_running()
        end_left_over(later, Events())
        assert raylet.wait(10) == -signal.SIGKILL


def test_a_step_of_the_clock_makes_no_other_process_of_a_driver() -> None:
    identity = identity_of(os.getppid())
    for seconds in (10.0, -86400.0):  # start times are computed from the clock
        assert is_alive_here(identity | {"started": identity["started"] + seconds})
    assert is_alive_here(identity | {"host": "the-name-before"})
    assert not is_alive_here(identity | {"ticks": identity["ticks"] - 1}), "the number is another process's by now"
    assert not is_alive_here(identity | {"boot": "another"}), "the machine was started anew, or is another one"


def test_a_process_of_an_older_record_is_known_by_host_and_start() -> None:
    known = identity_of(os.getppid())
    identity = {name: known[name] for name in ("host", "pid", "started")}
    assert is_alive_here(identity)
    assert not is_alive_here(identity | {"started": identity["started"] - 2 * SAME_START_S})
    assert not is_alive_here(identity | {"host": "another"})
    assert not is_alive_here(this_process()), "the caller is no other driver"
    assert abs(this_process()["started"] - time.time()) < 24 * 3600


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_alive_here(this_process() | {"pid": child.pid})
    identity = {name: this_process()[name] for name in ("host", "pid")}
    assert not is_alive_here(identity | {"pid": child.pid})
    child.wait()
