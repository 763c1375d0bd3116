"""The named actor of a run: others put requests into it, the run takes them out and puts its answers back.

The run's process alone knows its pools, so the actor knows nothing: it only passes on. It ends with the run.
"""

import asyncio
import itertools
from typing import Any

from settings.engine import MAX_WORKERS

PREFIX = "run:"

ANSWER_TIMEOUT_S = 60.0
"""Maximum time for a run to answer a request."""


def actor_name(run_name: str) -> str:
    """Name of the actor of a run."""
    return f"{PREFIX}{run_name}"


def checked_count(what: str, count: Any) -> int:
    """A number of workers that a request may ask for; ValueError naming the nearest valid one."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"{what} must be a whole number >= 1, got {count!r:.120}")
    if not 1 <= count <= MAX_WORKERS:
        limit, nearest = (">= 1", 1) if count < 1 else (f"<= {MAX_WORKERS}", MAX_WORKERS)
        got = count if abs(count) < 10**30 else f"a number of {count.bit_length()} bits"
        raise ValueError(f"{what} must be {limit}, got {got} (nearest valid: {nearest})")
    return count


class Mailbox:
    """Requests and answers are dictionaries of JSON values."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Put a request in and wait for its answer; TimeoutError if the run gives none."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((number, request))
        try:
            return await asyncio.wait_for(answer, ANSWER_TIMEOUT_S)
        finally:
            del self._answers[number]

    async def next_request(self, timeout_s: float) -> tuple[int, dict[str, Any]] | None:
        """The next request with its number, or None if none comes within `timeout_s`."""
        try:
            return await asyncio.wait_for(self._requests.get(), timeout_s)
        except TimeoutError:
            return None

    async def answer(self, number: int, answer: dict[str, Any]) -> None:
        """Answer a request; nobody may be waiting any more."""
        waiting = self._answers.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
