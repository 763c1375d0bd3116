"""Every wait of the controller: it has a limit, or depends on calls that have one, and says what it waits for."""

import asyncio
import logging
import threading
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0

NO_LIMIT_S = float("inf")
"""For waits that end with calls which have limits themselves."""


async def wait_for(
    awaitable: Awaitable[T],
    *,
    timeout_s: float,
    what: str | Callable[[], str],
    ended: "asyncio.Future[None] | None" = None,
) -> T:
    """Await with a limit; logs every 30 s, raises TimeoutError naming `what` and cancels at the limit.

    RayActorError as soon as `ended` is done: of a worker that was ended no answer comes, though Ray, whose head
    may be away, does not say so yet.
    """
    task = asyncio.ensure_future(awaitable)
    if task.done():
        return task.result()
    start = now()
    try:
        while True:
            left = timeout_s - (now() - start)
            waiting = {task} if ended is None else {task, ended}
            limit_s = max(0.0, min(LOG_EVERY_S, left))
            done, _ = await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            if done:
                from ray.exceptions import RayActorError  # commands import this before Ray is prepared

                raise RayActorError(error_msg="the worker was ended")
            if now() - start >= timeout_s:
                raise TimeoutError(f"no answer after {timeout_s:g} s from: {_text(what)}")
            logger.info("waiting for %s (%.0f s)", _text(what), now() - start)
    finally:
        task.cancel()


async def in_thread(
    call: Callable[[], T],
    *,
    timeout_s: float,
    what: str | Callable[[], str],
    late: Callable[[T], object] | None = None,
) -> T:
    """Make a call that blocks, such as one of Ray's state, in a thread of its own, and await its result.

    Nobody waits for a thread that hangs: not the event loop, and not the end of the process. What a call returns
    once nobody waits for it goes to `late`, in a thread too.
    """
    loop = get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T) -> None:
        if not future.done():
            future.set_result(result)
        elif late is not None:
            threading.Thread(target=late, args=(result,), daemon=True).start()

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 (it is raised where the result is awaited)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(fail, error)
        else:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(deliver, result)

    threading.Thread(target=run, name=f"call: {_text(what)}", daemon=True).start()
    return await wait_for(future, timeout_s=timeout_s, what=what)


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

    Whoever changes the state calls `changed()`; `until(predicate)` returns the first true value. Changes that come
    together wake a waiter once.
    """

    def __init__(self, *, of: "Signal | None" = None) -> None:
        """`of`: a signal that is told of every change here too."""
        self._of = of
        self._waiters: dict[asyncio.Future[bool], None] = {}  # in the order of waiting

    def changed(self) -> None:
        """Let every waiter look again, first come first."""
        for waiter in self._waiters:
            _resolve(waiter, True)
        self._waiters.clear()
        if self._of is not None:
            self._of.changed()

    async def until(self, predicate: Callable[[], T | None], *, timeout_s: float, what: Callable[[], str]) -> T:
        """Return `predicate()` once it is true; logs every 30 s, TimeoutError after `timeout_s` of no change."""
        waited_since = now()
        while not (value := predicate()):
            if await self._next_change(min(LOG_EVERY_S, timeout_s)):
                waited_since = now()
                continue
            waited_s = now() - waited_since
            if waited_s >= timeout_s:
                raise TimeoutError(f"nothing happened for {waited_s:.0f} s while waiting for {what()}")
            logger.info("waiting for %s (%.0f s)", what(), waited_s)
        return value

    async def _next_change(self, timeout_s: float) -> bool:
        """True at the next change, False after `timeout_s`.

        `asyncio.wait_for` would not do: before Python 3.12 it swallows a cancellation that meets a change, and a
        cancelled stage that continues would keep the run from ending.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(timeout_s, _resolve, waiter, False)
        self._waiters[waiter] = None
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)


def _text(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)


def now() -> float:
    """Seconds of the running event loop's clock, which may be simulated; RuntimeError outside a loop."""
    return get_running_loop().time()
