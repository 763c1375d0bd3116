"""What a run prints ends nothing: closed pipes and terminals, full disks, readers that stopped, poor encodings."""

import asyncio
import json
import logging
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from records.events import Events
from records.files import read_rows
from records.run_folder import RunFolder
from reporting.live.boards import Dashboards
from reporting.live.output import Output, lasting_output
from reporting.live.progress import ProgressView
from tests.unit.metric_rows import metrics_row
from tests.unit.test_live_view import config

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object]) -> None:
    """Wait at most 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Told:
    """An output, and what it told of its troubles."""

    def __init__(self, file: int, **settings: Any) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.output = Output(open(file, "w", **settings.pop("stream", {})), **settings)  # noqa: SIM115
        self.output.on_trouble(lambda *row: self.rows.append(row))


def closed_pipe() -> int:
    """The end to write to of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal() -> int:
    """A terminal whose window was closed."""
    window, terminal = pty.openpty()
    os.close(window)
    return terminal


def full_disk() -> int:
    """A file that takes nothing."""
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        (closed_pipe, "EPIPE: Broken pipe"),
        (full_disk, "ENOSPC: No space left on device"),
        (closed_terminal, "EIO: Input/output error"),
    ],
)
def test_output_that_fails_is_told_once_and_raises_nothing(opened: Callable[[], int], reason: str) -> None:
    told = Told(opened())
    console = Console(file=told.output)  # pyright: ignore[reportArgumentType]
    console.print("step 1")
    until(lambda: told.rows)
    console.print("step 2")
    print("step 3", file=told.output, flush=True)  # pyright: ignore[reportArgumentType]
    assert told.rows == [("output_failed", "output", reason)]
    late: list[str] = []
    told.output.on_trouble(lambda *row: late.append(row[2]))
    assert late == [reason]


def test_a_reader_that_stopped_costs_lines_and_no_time_and_may_continue_later() -> None:
    reader, writer = os.pipe()
    told = Told(writer, max_bytes=100_000)
    began = time.monotonic()
    for number in range(10_000):
        told.output.write(f"{number:>99}\n")
    assert time.monotonic() - began < 5
    until(lambda: told.rows)
    assert [row[:2] for row in told.rows] == [("output_stalled", "output")]
    seen = b""
    while len(seen) < 100_000:  # what the queue takes at least, however late its thread begins to fill the pipe
        seen += os.read(reader, 1 << 16)
    until(lambda: told.output.writer is not None and not told.output.writer._size)
    told.output.write("again\n")
    while not seen.endswith(b"again\n"):
        seen += os.read(reader, 1 << 16)
    numbers = [int(line) for line in seen.splitlines()[:-1]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 10_000


def test_a_descriptor_that_does_not_want_to_wait_gets_every_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told = Told(writer)
    for _ in range(4000):
        told.output.write("x" * 99 + "\n")
    seen = b""
    while len(seen) < 400_000:
        seen += os.read(reader, 1 << 16)
    assert told.rows == []


def test_letters_that_the_terminal_does_not_have_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "log"
    told = Told(os.open(file, os.O_WRONLY | os.O_CREAT), stream={"encoding": "ascii"})
    told.output.write("na\u00efve\n")
    until(lambda: file.read_text() == "na\\xefve\n")


PROGRAM = """
import logging, os, sys
from reporting.live.output import lasting_output
from pathlib import Path
with lasting_output():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for number in range(200):
        print("out", number, flush=True)
        logging.getLogger().info("err %d", number)
    opened = open(sys.argv[1], "w")
    os.system("echo from a child; echo from a child >&2")
    Path(sys.argv[2]).write_text(str(opened.fileno()))
sys.exit(3)
"""


@pytest.mark.parametrize(
    "redirection", ["", ">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>&1", "| true", "2>&1 | true"]
)
def test_a_program_ends_with_its_own_code_whatever_becomes_of_its_output(tmp_path: Path, redirection: str) -> None:
    """And no file that it opens becomes its standard output."""
    other, told = tmp_path / "other", tmp_path / "told"
    line = f"set -o pipefail; '{sys.executable}' -c '{PROGRAM}' {other} {told} {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, other.read_text()) == (3, "")
    assert int(told.read_text()) > 2


def test_standard_output_and_error_keep_their_order_in_one_file(tmp_path: Path) -> None:
    log, paths = tmp_path / "log", [str(tmp_path / "other"), str(tmp_path / "told")]
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", PROGRAM, *paths], cwd=ROOT, stdout=file, stderr=file, timeout=60)
    text, child = log.read_text(), "from a child\n"  # which does not wait for what is still queued here
    assert text.count(child) == 2
    lines = text.replace(child, "").splitlines()
    assert lines == [f"{name} {number}" for number in range(200) for name in ("out", "err")]


def test_log_lines_and_streams_are_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    before = sys.stdout, sys.stderr
    try:
        with lasting_output():
            print("shown")
            assert handler.stream is sys.stderr is not before[1]
        assert (sys.stdout, sys.stderr, handler.stream) == (*before, before[1])
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().out == "shown\n"


# -- in a run -------------------------------------------------------------------------------------------------


def test_steps_are_shown_to_a_closed_pipe_and_the_live_view_to_a_closed_terminal() -> None:
    for display, opened in (("plain", closed_pipe), ("live", closed_terminal)):
        told = Told(opened())
        console = Console(file=told.output, force_terminal=display == "live")  # pyright: ignore[reportArgumentType]
        view = ProgressView(config(logging={"display": display}), console=console)

        async def show(view: ProgressView = view) -> None:
            async with view.following(lambda: {"run": "first", "state": "running", "pools": {}}):
                for step in range(1, 4):
                    view.step(metrics_row(step))
                    view.say(f"line {step}")
                    await asyncio.sleep(0.01)

        asyncio.run(show())
        until(lambda told=told: told.rows)


def test_a_dashboard_that_fails_is_switched_off_and_noted_and_the_others_continue(tmp_path: Path) -> None:
    folder, events = RunFolder(tmp_path), Events(tmp_path / "events.jsonl")
    boards = Dashboards(config(logging={"prometheus": False, "display": "plain"}), folder, events)
    shown: list[int] = []

    class Broken:
        def step(self, row: Any) -> None:
            raise OSError(5, "Input/output error")

        evaluation = event = step

    class Other(Broken):
        def step(self, row: Any) -> None:
            shown.append(row["step"])

        evaluation = event = lambda self, row: None

    boards._boards = [Broken(), Other()]
    for step in (1, 2):
        boards.step(metrics_row(step))
    assert shown == [1, 2]
    failed = [row for row in read_rows(folder.events) if row["event"] == "dashboard_failed"]
    assert [(row["dashboard"], row["reason"]) for row in failed] == [
        ("Broken", "OSError: [Errno 5] Input/output error")
    ]


def test_a_run_notes_in_its_events_that_its_output_has_failed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from commands.train import note_output\n"
        "from records.events import Events\n"
        "from reporting.live.output import lasting_output\n"
        "async def run():\n"
        "    note_output(Events(Path(sys.argv[1])))\n"
        "    for _ in range(20):\n"
        "        print('a line', flush=True)\n"
        "        await asyncio.sleep(0.01)\n"
        "with lasting_output():\n"
        "    asyncio.run(run())\n"
    )
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-c", program, str(tmp_path / "events.jsonl")]
        assert subprocess.run(line, cwd=ROOT, stdout=full, timeout=60).returncode == 0
    [row] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (row["event"], row["stream"]) == ("output_failed", "stdout")
    assert row["reason"] == "ENOSPC: No space left on device"
