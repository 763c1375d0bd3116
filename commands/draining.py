"""SIGINT and SIGTERM end a run gently."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SIGNAL_S = 2.0
"""A signal so soon after the first one is the same one, sent by another."""


def drain_on_signals() -> list[Callable[[], object]]:
    """Call the last entry of the returned list on SIGINT or SIGTERM: at first it cancels this task.

    A second signal ends the process the default way, unless it follows at once: `ray job stop` signals a
    supervisor and its child, and the supervisor passes it on.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stop: list[Callable[[], object]] = [task.cancel]
    signals = (signal.SIGINT, signal.SIGTERM)

    is_draining = False

    def drain() -> None:
        nonlocal is_draining
        if is_draining:
            return
        is_draining = True
        print("stopping: the step in progress is finished and saved (again to abort)", file=sys.stderr, flush=True)
        loop.call_later(SAME_SIGNAL_S, let_abort)
        stop[-1]()

    def let_abort() -> None:
        for each in signals:
            loop.remove_signal_handler(each)

    for each in signals:
        loop.add_signal_handler(each, drain)
    return stop


@contextmanager
def signals_go_to(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """Let `handler` have these signals inside the block, and restore what had them before."""
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)
