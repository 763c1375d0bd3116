"""SIGINT, SIGTERM and SIGHUP at any moment of a command: one line, the documented code, none is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, sys, time
from commands.signals import current_task, stopped_by_signals
from commands.exit_codes import run_to_exit_code
from reporting.live.output import lasting_output
phase, seconds = sys.argv[1], float(sys.argv[2])

def reach(name):
    if name == phase:
        print("ready", flush=True)
        time.sleep(seconds)

async def run(signals):
    stop, stopped = [current_task().cancel], asyncio.Event()
    signals.then(lambda: stop[-1]())
    if phase == "workers":
        print("ready", flush=True)
        await asyncio.sleep(seconds)
    stop.append(stopped.set)
    if phase == "training":
        print("ready", flush=True)
        await asyncio.wait_for(stopped.wait(), 20)
        await asyncio.sleep(seconds)
    return 3 if phase == "training" else 0

with lasting_output(), stopped_by_signals() as signals:
    try:
        reach("checks")
        try:
            reach("swallowed")
        except KeyboardInterrupt:
            pass
        signals.check()
        code = run_to_exit_code(run(signals))
        reach("closing")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 3
sys.exit(code)
"""


def ended(
    phase: str, *signals: signal.Signals, seconds: float = 20.0, is_hup_ignored: bool = False
) -> tuple[int, str]:
    """Exit code and standard error of a program that gets signals in a phase of its life, one every 0.1 s."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_hup_ignored else signal.SIG_DFL)

    line = [sys.executable, "-c", PROGRAM, phase, str(seconds)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=ROOT, preexec_fn=prepare, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for each in signals:
            time.sleep(0.1)
            process.send_signal(each)
        errors = process.communicate(timeout=30)[1]
    return process.returncode, errors


EACH = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name
)
STOPPING = "stopping: the step in progress is finished and saved (again to abort)"


@EACH
@pytest.mark.parametrize("phase", ["checks", "swallowed"])
def test_a_signal_before_the_loop_interrupts_though_a_library_swallows_it(
    phase: str, number: signal.Signals
) -> None:
    began = time.monotonic()
    assert ended(phase, number, seconds=3.0) == (3, "interrupted\n")
    assert time.monotonic() - began < 15


@EACH
def test_a_signal_while_workers_start_cancels_the_start(number: signal.Signals) -> None:
    assert ended("workers", number) == (3, f"{STOPPING}\ninterrupted; continue with --resume\n")


@EACH
def test_a_signal_drains_what_trains(number: signal.Signals) -> None:
    assert ended("training", number, seconds=0.1) == (3, f"{STOPPING}\n")


@EACH
def test_a_signal_while_all_is_closed_changes_nothing(number: signal.Signals) -> None:
    assert ended("closing", number, seconds=1.0) == (0, "")


def test_signals_that_follow_at_once_are_the_same_one() -> None:
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM]
    assert ended("training", *signals, seconds=0.5) == (3, f"{STOPPING}\n")


def test_a_second_sigint_aborts_and_a_second_sigterm_kills() -> None:
    for number, code in ((signal.SIGINT, 3), (signal.SIGTERM, -signal.SIGTERM)):
        assert ended("training", *[number] * 24)[0] == code


def test_a_terminal_that_hangs_up_again_and_again_aborts_nothing() -> None:
    assert ended("training", *[signal.SIGHUP] * 24, seconds=2.6)[0] == 3


def test_sighup_is_ignored_where_it_was_ignored_at_the_start() -> None:
    assert ended("training", signal.SIGHUP, signal.SIGTERM, seconds=0.1, is_hup_ignored=True)[0] == 3


def test_a_run_whose_output_is_gone_is_drained_all_the_same() -> None:
    reader, error = os.pipe()
    os.close(reader)
    line = [sys.executable, "-c", PROGRAM, "training", "0.1"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=error) as process:
        os.close(error)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 3
