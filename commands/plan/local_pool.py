"""A pool whose workers live in this process, without Ray: for simulations of whole runs and for load tests.

    handle = LocalActor(worker)
    refs = handle.score.options(num_returns=3).remote(table)     # references: await them, or pass them on
    stream = handle.generate.options(num_returns="streaming").remote(prompts)

Workers are called as Ray actors are, and their errors reach the caller as they would from another process.
"""

import asyncio
import inspect
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.pool import Pool
from cluster.worker import Worker

ENDED = "the worker was ended"

IN_PROCESS = "in process"
"""Placement of a local worker."""


class LocalPool(Pool):
    """A `Pool` that makes its workers here."""

    async def create(self, workers: list[Worker], turn: asyncio.Lock | None = None) -> None:
        for worker in workers:
            spec = self._build(int(worker.name.rpartition("-")[2]))
            worker.handle = LocalActor(spec.cls(*spec.args, **spec.kwargs))
            worker.num_lives += 1
            worker.placement = worker.node_id = worker.node = IN_PROCESS

    def _free(self, worker: Worker) -> None:
        if worker.placement is not None:
            worker.handle.kill()
            worker.placement = None


class LocalRef:
    """A value that a call returns: item `index` of its result, or all of it."""

    def __init__(self, call: "asyncio.Future[Any]", index: int | None = None) -> None:
        self._call = call
        self._index = index

    def __await__(self) -> Generator[Any, None, Any]:
        value = yield from asyncio.shield(self._call).__await__()
        return value if self._index is None else value[self._index]


class LocalActor:
    """Stands for `target` as a handle does for an actor."""

    inside: "ContextVar[LocalActor | None]" = ContextVar("inside", default=None)
    """The actor whose work the present task does."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._calls: dict[asyncio.Task[Any], None] = {}  # in the order of their begin
        self._is_dead = False
        self._is_awake = asyncio.Event()
        self._is_awake.set()

    def __getattr__(self, method: str) -> "LocalMethod":
        return LocalMethod(self, method)

    def kill(self) -> None:
        """End every call in flight with an error, and refuse further ones."""
        self._is_dead = True
        for call in self._calls:
            call.get_loop().call_soon(call.cancel)  # once it has begun, so that it ends with our error

    def freeze(self) -> None:
        """Begin and answer no call until `thaw()`, as a process that is stopped."""
        self._is_awake.clear()

    def thaw(self) -> None:
        """Resume after `freeze()`."""
        self._is_awake.set()

    def call(self, method: str, args: tuple[Any, ...], named: dict[str, Any]) -> "asyncio.Task[Any]":
        """Begin a call; references among the arguments are awaited first."""
        return self.track(partial(self._run, method, args, named))

    def track(self, work: Callable[[], Awaitable[Any]]) -> "asyncio.Task[Any]":
        """Begin work that ends with this actor."""
        task = asyncio.create_task(self._guard(work))
        self._calls[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._calls.pop(task, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; nobody has to

    async def _run(self, method: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        values = [await arg if isinstance(arg, LocalRef) else arg for arg in args]
        result = getattr(self._target, method)(*values, **named)
        return await result if inspect.isawaitable(result) else result

    async def _guard(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do work of this actor; its errors are those of an actor."""
        self.inside.set(self)
        try:
            if self._is_dead:
                raise RayActorError(error_msg=ENDED)
            if not self._is_awake.is_set():
                await self._is_awake.wait()
            result = await work()
            if not self._is_awake.is_set():
                await self._is_awake.wait()
            return result
        except (RayError, StopAsyncIteration):
            raise
        except asyncio.CancelledError:
            if not self._is_dead:
                raise
            raise RayActorError(error_msg=ENDED) from None
        except Exception as error:
            raise _as_of_a_task(error) from error


def _as_of_a_task(error: Exception) -> RayError:
    """What Ray makes of an error that a worker raises: it is of the error's type too."""
    process: dict[str, Any] = {"proctitle": "local", "pid": os.getpid(), "ip": "local"}
    text = "".join(traceback.format_exception_only(error))
    return RayTaskError("call", text, error, **process).as_instanceof_cause()


class LocalMethod:
    """A method of a local actor."""

    def __init__(self, actor: LocalActor, name: str, num_returns: int | str = 1) -> None:
        self._actor = actor
        self._name = name
        self._num_returns = num_returns

    def options(self, *, num_returns: int | str = 1, **_: Any) -> "LocalMethod":
        """As of a Ray method; what concerns processes is ignored."""
        return LocalMethod(self._actor, self._name, num_returns)

    def remote(self, *args: Any, **named: Any) -> Any:
        """Begin the call: a reference, a list of them, or a `LocalStream`."""
        call = self._actor.call(self._name, args, named)
        if self._num_returns == "streaming":
            return LocalStream(self._actor, call)
        if self._num_returns == 1:
            return LocalRef(call)
        assert isinstance(self._num_returns, int)
        return [LocalRef(call, index) for index in range(self._num_returns)]


class LocalStream:
    """The references of what a generator method yields, made as they are asked for."""

    def __init__(self, actor: LocalActor, call: "asyncio.Task[Any]") -> None:
        self._actor = actor
        self._call = call
        self._items: AsyncIterator[Any] | Iterator[Any] | None = None
        self._making: asyncio.Task[Any] | None = None  # the item asked for last

    async def __anext__(self) -> LocalRef:
        value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._making = self._actor.track(self._next)
        value.set_result(await self._making)
        return LocalRef(value)

    async def _next(self) -> Any:
        if self._items is None:
            self._items = await self._call
        assert self._items is not None
        if isinstance(self._items, AsyncIterator):
            return await anext(self._items)
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None

    async def cancel(self) -> None:
        """End the generator where it is."""
        if self._making is not None and not self._making.done():  # whoever asked for it waits no more
            self._making.cancel()
            await asyncio.wait({self._making})
        if isinstance(self._items, AsyncIterator) and hasattr(self._items, "aclose"):
            await self._items.aclose()  # pyright: ignore[reportAttributeAccessIssue]
