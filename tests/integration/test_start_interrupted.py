"""A start that is interrupted or loses a worker: one line, the documented exit code, and nothing is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from records.files import read_rows
from settings.exit_codes import DRAINED, FAILED
from tests.integration.killed_run import KilledRun
from tests.integration.namespaces import ROOT

pytestmark = pytest.mark.timeout(300)


class Starting:
    """A run that starts in a session of its own, as in a terminal."""

    def __init__(self, path: Path, *, prepare: Callable[[], object] = lambda: None, **environment: str) -> None:
        self.run = KilledRun(path)

        def heed() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            prepare()

        merged: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "start_new_session": True,
        }
        self.process = subprocess.Popen(
            self.run.command(), cwd=ROOT, preexec_fn=heed, env=os.environ | environment, **merged
        )
        self.seen: set[psutil.Process] = set()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a moment of the start."""
        deadline = time.monotonic() + 200
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
            self.look()

    def look(self) -> None:
        """Remember which processes there are."""
        self.seen |= {*psutil.Process(self.process.pid).children(recursive=True)}

    def named(self, name: str) -> list[psutil.Process]:
        """The processes of a name, so far."""
        self.look()
        return [each for each in self.seen if each.is_running() and name in each.name()]

    def has_event(self, name: str) -> bool:
        """Whether the run has noted it."""
        return any(row["event"] == name for row in read_rows(self.run.folder.events))

    def end(self) -> tuple[int, list[str]]:
        """Exit code and lines of the run, of which no process is left."""
        output = self.process.communicate(timeout=120)[0]
        assert psutil.wait_procs(self.seen, timeout=20)[1] == []
        return self.process.returncode, output.splitlines()


@pytest.mark.slow
def test_ctrl_c_while_inputs_are_read(tmp_path: Path) -> None:
    start = Starting(tmp_path)
    time.sleep(3.0)
    os.killpg(start.process.pid, signal.SIGINT)
    assert start.end() == (DRAINED, ["interrupted; nothing is written yet: start it again"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_signal_while_ray_starts(tmp_path: Path, number: signal.Signals) -> None:
    start = Starting(tmp_path)
    start.until(lambda: start.named("gcs_server"))
    os.kill(start.process.pid, number)
    assert start.end() == (DRAINED, ["interrupted; nothing is written yet: start it again"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda each: each.name)
def test_a_signal_of_the_terminal_while_engines_start(tmp_path: Path, number: signal.Signals) -> None:
    start = Starting(tmp_path)
    start.until(lambda: start.has_event("workers_placed"))
    os.killpg(start.process.pid, number)
    code, lines = start.end()
    assert (code, lines[-1]) == (DRAINED, "interrupted; continue with --resume")
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("RolloutWorker", "rollout-0"), ("LearnerRank", "learner-0")])
def test_a_worker_that_is_killed_while_engines_start(tmp_path: Path, kind: str, name: str) -> None:
    start = Starting(tmp_path)
    start.until(lambda: start.has_event("workers_placed") and start.named(f"ray::{kind}"[:15]))
    time.sleep(1.0)
    [worker] = start.named(f"ray::{kind}"[:15])
    worker.kill()
    code, lines = start.end()
    assert (code, lines[-1].startswith(f"failed: {name} ")) == (FAILED, True), lines
    assert not any("Traceback" in line for line in lines)
    assert start.has_event("run_failed")


def test_a_ray_that_does_not_start_in_time(tmp_path: Path) -> None:
    start = Starting(tmp_path, RAY_gcs_server_port_wait_time_s="0")
    code, lines = start.end()
    assert code == FAILED
    [line] = lines
    assert line.startswith("failed: Ray did not start on this machine: ")
