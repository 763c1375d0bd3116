"""`launch.py compare`: checks every run of a comparison, trains what is missing, and writes table and figures.

Each run is a process of its own, one after the other. Ctrl-C is passed on to the run in progress, which drains;
the same command continues later.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import psutil

from cluster.connection import is_local
from commands.compare.plan import ATTEMPTS, CompareConfig, PlannedRun, describe, plan_runs
from commands.retries import LAUNCH
from commands.signals import signals_go_to, stop_signals
from records.files import append_row
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED
from settings.load import load_settings

SAMPLE_EVERY_S = 2.0
"""Memory is measured so often; a shorter peak may be missed."""

GIB = 2**30


def compare_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Carry it out; returns the exit code. ValueError means bad input and that nothing runs."""
    config = load_settings(CompareConfig, arguments.config, options)
    runs = plan_runs(config)

    def command_of(run: PlannedRun) -> list[str]:
        train = [sys.executable, str(LAUNCH), "train", "--log-level", arguments.log_level]
        return [*train, "--config", config.base, *run.options, "--resume=auto"]

    if arguments.dry_run:
        for run in runs:
            print(f"# {run.config.run_name} ({describe(run)})\n{shlex.join(command_of(run))}")
        return FINISHED
    from commands.compare.results import write_results  # numpy, matplotlib

    code = FINISHED if arguments.results_only else run_all(runs, command_of)
    write_results(config, runs)
    return code


def run_all(
    runs: Sequence[PlannedRun],
    command_of: Callable[[PlannedRun], list[str]],
    say: Callable[[str], object] = print,
) -> int:
    """Carry out what is not finished; returns the exit code.

    A failed run does not keep the next ones from their turn; a refused or interrupted one does.
    """
    interrupts, code = Interrupts(), FINISHED
    with signals_go_to(interrupts.on_signal, *stop_signals()):
        for number, run in enumerate(runs, start=1):
            title = f"run {number}/{len(runs)}: {run.config.run_name}"
            say(f"{title} ({describe(run)})")
            if run.is_finished:
                continue
            result = _attempt(run, interrupts.start(command_of(run)))
            if interrupts.have_come and not all(each.is_finished for each in runs):
                say("interrupted; the same command continues")
                return DRAINED
            if result in (BAD_INPUT, DRAINED):
                return result
            if result != FINISHED:
                say(f"{title} failed with exit code {result}")
                code = FAILED
    return code


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP to this process, passed on to the run in progress as SIGINT: it drains."""

    def __init__(self) -> None:
        self.have_come = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a run in a session of its own: a terminal's Ctrl-C reaches it once, through this class."""
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.have_come:
            self._process.send_signal(signal.SIGINT)
        return self._process

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Pass it on."""
        self.have_come = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


def _attempt(run: PlannedRun, process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a run, and record what it took: its memory only if all of it is on this machine."""
    start, peak = time.monotonic(), 0
    while True:
        try:
            code = process.wait(SAMPLE_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, memory_of(process.pid)) if is_local(run.config.cluster) else 0
    runs_path = Path(run.config.runs_path)
    runs_path.mkdir(parents=True, exist_ok=True)
    row = {"run": run.config.run_name, "exit_code": code, "wall_s": round(time.monotonic() - start, 1)}
    append_row(runs_path / ATTEMPTS, row | {"peak_memory_gib": round(peak / GIB, 3) if peak else None})
    return code


def memory_of(pid: int) -> int:
    """Bytes that a process and all below it hold; of what several share, each counts its part."""
    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in family:
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            continue
    return total
