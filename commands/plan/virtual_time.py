"""An event loop whose time jumps to the next timer as soon as nothing else is left to do.

    run_virtually(pipeline.run())       # hours of simulated waiting in seconds, by the code that real runs use

Only waiting on timers (`asyncio.sleep`, timeouts) is simulated: there must be no threads and no other processes.
What is meant for a thread (`asyncio.to_thread`) is done at once and takes no simulated time.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its clock starts at 0 s and stands still while anything is ready."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Simulated seconds."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Go to the next timer."""
        self._now_s += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Do it here and now: while a thread worked, the simulated time would run away."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (whoever awaits the future is told)
            future.set_exception(error)
        return future


class _Jumping(selectors.DefaultSelector):
    """Looks for events without waiting; where the loop would wait, its time jumps."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Events that are there; RuntimeError if nothing could ever happen."""
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("the simulation stands still: no timer is left, and something still waits")
        if not events and timeout is not None and timeout > 0:
            self._loop.jump(timeout)
        return events


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
