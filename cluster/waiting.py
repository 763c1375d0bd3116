"""Every wait of the controller: it has a limit, or depends on calls that have one, and says what it waits for."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0

NO_LIMIT_S = float("inf")
"""For waits that end with calls which have limits themselves."""


async def wait_for(awaitable: Awaitable[T], *, timeout_s: float, what: str) -> T:
    """Await with a limit; logs every 30 s, raises TimeoutError naming `what` and cancels at the limit."""
    task = asyncio.ensure_future(awaitable)
    start = time.monotonic()
    try:
        while True:
            left = timeout_s - (time.monotonic() - start)
            done, _ = await asyncio.wait({task}, timeout=max(0.0, min(LOG_EVERY_S, left)))
            if done:
                return task.result()
            if time.monotonic() - start >= timeout_s:
                raise TimeoutError(f"no answer after {timeout_s:g} s from: {what}")
            logger.info("waiting for %s (%.0f s)", what, time.monotonic() - start)
    finally:
        task.cancel()


async def together(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """Await all at once and return their results in order; the first error ends the waiting for the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


class Signal:
    """Wakes all who wait for a condition on shared state, in one event loop.

    Whoever changes the state calls `changed()`; `until(predicate)` returns the first true value.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def changed(self) -> None:
        """Let every waiter look again."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, predicate: Callable[[], T | None], *, timeout_s: float, what: Callable[[], str]) -> T:
        """Return `predicate()` once it is true; logs every 30 s, TimeoutError after `timeout_s` of no change."""
        waited_since = time.monotonic()
        while not (value := predicate()):
            event = self._event
            try:
                await asyncio.wait_for(event.wait(), timeout=min(LOG_EVERY_S, timeout_s))
                waited_since = time.monotonic()
            except TimeoutError:
                waited_s = time.monotonic() - waited_since
                if waited_s >= timeout_s:
                    raise TimeoutError(
                        f"nothing happened for {waited_s:.0f} s while waiting for {what()}"
                    ) from None
                logger.info("waiting for %s (%.0f s)", what(), waited_s)
        return value
