"""SIGINT and SIGTERM end a run gently."""

import asyncio
import signal
import sys
from collections.abc import Callable


def drain_on_signals() -> list[Callable[[], object]]:
    """Call the last entry of the returned list on SIGINT or SIGTERM: at first it cancels this task.

    A second signal ends the process the default way.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stop: list[Callable[[], object]] = [task.cancel]
    signals = (signal.SIGINT, signal.SIGTERM)

    def drain() -> None:
        print("stopping: the step in progress is finished and saved (again to abort)", file=sys.stderr, flush=True)
        for each in signals:
            loop.remove_signal_handler(each)
        stop[-1]()

    for each in signals:
        loop.add_signal_handler(each, drain)
    return stop
