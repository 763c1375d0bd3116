"""What ends a run gently: SIGINT, SIGTERM and SIGHUP, from the first moment of a command to its last.

    starting (checks, Ray)     KeyboardInterrupt, wherever it is
    starting workers           the task is cancelled
    training                   the step in progress is finished and saved
    closing                    nothing: it ends anyway

A second SIGINT or SIGTERM ends the process, unless it follows at once: `ray job stop` signals a supervisor and its
child, and the supervisor passes it on. A second SIGHUP never does: kernel and shell both send one when a terminal
is closed. Where SIGHUP is ignored, as under `nohup`, it stays so.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SAME_SIGNAL_S = 2.0
"""A signal so soon after the first one is the same one, sent by another."""

STOPPING = "stopping: the step in progress is finished and saved (again to abort)"


class StopSignals:
    """What the first signal does: it interrupts, or calls what `then` was given."""

    def __init__(self) -> None:
        self._came: float | None = None
        self._stop: Callable[[], object] = interrupt

    @property
    def have_come(self) -> bool:
        """Whether the process is asked to end."""
        return self._came is not None

    def check(self) -> None:
        """KeyboardInterrupt if it is: a library may have caught the one of the signal."""
        if self.have_come:
            interrupt()

    def then(self, stop: Callable[[], object], *, say: str | None = STOPPING) -> None:
        """Let the first signal call `stop` in the running loop, or nothing once that has ended."""
        loop = asyncio.get_running_loop()

        def stop_and_say() -> None:
            stop()
            if say is not None:
                print(say, file=sys.stderr)

        def stop_soon() -> None:
            with suppress(RuntimeError):  # the loop has ended, and the process does
                loop.call_soon_threadsafe(stop_and_say)

        self._stop = stop_soon
        if self.have_come:
            stop_soon()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first one stops; later ones end the process."""
        now = time.monotonic()
        if self._came is None:
            self._came = now
            self._stop()
        elif now - self._came <= SAME_SIGNAL_S or number == signal.SIGHUP:
            return
        elif number == signal.SIGINT:
            interrupt()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stopped_by_signals() -> Iterator[StopSignals]:
    """Let the first signal stop what is inside the block; a block within another one shares its signals."""
    current = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(current, StopSignals):
        yield current
        return
    signals = StopSignals()
    with signals_go_to(signals.on_signal, *stop_signals()):
        yield signals


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks a run to end: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""
    is_heard = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if is_heard else []))


@contextmanager
def signals_go_to(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """Let `handler` have these signals inside the block, then whoever had them; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():  # no other may
        yield
        return
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)


def current_task() -> asyncio.Task[Any]:
    """The one that calls."""
    task = asyncio.current_task()
    assert task is not None, "called outside a task"
    return task


def interrupt() -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt
