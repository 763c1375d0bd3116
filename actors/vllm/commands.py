"""Functions that other threads ask the engine thread to run between two of its steps."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Commands:
    """A queue of functions for one thread. Every future is resolved, also when that thread ends.

    >>> commands = Commands()
    >>> future = commands.call(lambda: 1 + 1)   # any thread
    >>> commands.run(wait=True)                 # the one thread
    >>> future.result()
    2
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # a function is either queued before the end, or refused
        self._ended_by: BaseException | None = None

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Queue `function`; its result or error arrives in the future. RuntimeError after `close`."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended_by is not None:
                raise RuntimeError(f"the engine has ended: {self._ended_by}")
            self._queue.put((function, future))
        return future

    def run(self, *, wait: bool) -> None:
        """Run everything queued; with `wait`, sleep until there is something."""
        while wait or not self._queue.empty():
            function, future = self._queue.get()
            wait = False
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - raised where the function was queued
                future.set_exception(error)
            else:
                future.set_result(result)

    def close(self, error: BaseException) -> None:
        """Fail what is queued and refuse everything from now on, because of `error`."""
        with self._lock:
            self._ended_by = error
        while not self._queue.empty():
            _, future = self._queue.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError(f"the engine has ended: {error}"))
