"""What outlives a run's crash: `launch.py train --retries N`.

With retries the run is a child process. When it dies by a signal or fails (exit code 1), it is started again with
`--resume=auto` after a pause that doubles; N times without a new step are the end. What finished, was refused or
drained (exit codes 0, 2, 3) is passed on; only what was refused at a later start is tried again, since it was not
the input then: Ray may be restarting itself. SIGINT, SIGTERM and SIGHUP go to the child, which drains, and nothing
is started again.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from commands.signals import signals_go_to, stop_signals
from records.files import read_rows
from records.ledger import is_ledger_row
from records.ownership import owner_of
from records.run_folder import RunFolder
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED

LAUNCH = Path(__file__).resolve().parents[1] / "launch.py"
"""The command line itself."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0

PR_SET_PDEATHSIG = 1
"""From Linux' `prctl.h`: the signal a process gets when its parent ends."""


def supervise(folder: RunFolder, arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Train with the parsed `arguments` and further `options` in child processes; returns the exit code."""
    if arguments.retries < 0:
        raise ValueError(f"--retries must be >= 0, got {arguments.retries} (nearest valid: 0)")
    line = [sys.executable, str(LAUNCH), "train", "--log-level", arguments.log_level, *options]
    if arguments.config is not None:
        line += ["--config", arguments.config]
    for key in arguments.force:
        line += ["--force", key]
    return Retries(folder, retries=arguments.retries).run(
        [*line, f"--resume={arguments.resume}"], [*line, "--resume=auto"]
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Retries:
    """Runs a command until it ends well, is refused, is stopped, or fails too often without progress."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        retries: int,
        first_pause_s: float = FIRST_PAUSE_S,
        say: Callable[[str], object] = _say,
    ) -> None:
        self._folder = folder
        self._retries = retries
        self._first_pause_s = first_pause_s
        self._say = say
        self._stopped_by: int | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, first: Sequence[str], again: Sequence[str]) -> int:
        """Run `first`, then `again` as often as it takes; returns the exit code. In the main thread only."""
        command, failures = first, 0
        with signals_go_to(self._on_signal, *stop_signals()):
            while True:
                step, owner = self._last_step(), owner_of(self._folder.path)
                code, pid = self._run_once(command)
                if code in (FINISHED, DRAINED) or (code == BAD_INPUT and command is first):
                    return code
                reached = self._last_step()
                reason = f"died by signal {-code}" if code < 0 else f"failed with exit code {code}"
                if self._stopped_by is not None:  # perhaps before it could drain
                    return self._interrupted() if code == -self._stopped_by else FAILED
                if self._is_taken_over(owner, pid):
                    self._say(f"the run {reason}; its folder is another process's now, so it is not started again")
                    return FAILED
                failures = 1 if reached > step else failures + 1
                if failures > self._retries:
                    self._say(f"the run {reason}; after {self._retries} retries it is still at step {reached}")
                    return BAD_INPUT if code == BAD_INPUT else FAILED
                pause_s = min(self._first_pause_s * 2 ** (failures - 1), LONGEST_PAUSE_S)
                self._say(
                    f"the run {reason}, at step {reached}; retry {failures} of {self._retries}, {pause_s:g} s"
                )
                if self._is_stopped_within(pause_s):
                    return self._interrupted()
                command = again

    def _interrupted(self) -> int:
        self._say("interrupted; continue with --resume")
        return DRAINED

    def _run_once(self, command: Sequence[str]) -> tuple[int, int]:
        """Exit code (of a signal: negative) and pid of one run of the command."""
        # In a session of its own a terminal's Ctrl-C reaches it once, through this process.
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=_dies_with(os.getpid()))
        self._child = child
        if self._stopped_by is not None:  # before it was known here
            child.send_signal(self._stopped_by)
        return child.wait(), child.pid

    def _last_step(self) -> int:
        """The highest step that was ever trained."""
        rows = read_rows(self._folder.ledger, is_ledger_row)
        return max((row["step"] for row in rows if "step" in row), default=0)

    def _is_taken_over(self, before: dict[str, Any] | None, pid: int) -> bool:
        """True if someone else has opened the folder since: two supervisors must not take it from each other."""
        owner = owner_of(self._folder.path)
        is_child = owner is not None and (owner["host"], owner["pid"]) == (socket.gethostname(), pid)
        return owner != before and not is_child

    def _is_stopped_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._stopped_by is None and time.monotonic() < until:
            time.sleep(0.05)
        return self._stopped_by is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopped_by = number
        if self._child is not None:
            self._child.send_signal(number)  # none is sent to one that has ended


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it starts, so that it is killed with its parent, however that one ends (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(FAILED)

    return prepare
