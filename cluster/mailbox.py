"""The named actor of a run: others put requests into it, the run takes them out and puts its answers back.

The run's process alone knows its pools, so the actor knows nothing: it only passes on, and only what is a request
by its form. It ends with the run.
"""

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any

from settings.engine import MAX_WORKERS

PREFIX = "run:"

ANSWER_TIMEOUT_S = 60.0
"""Maximum time for a run to answer a request."""

MAX_REQUEST_BYTES = 65_536
MAX_WAITING = 1000
"""Requests that may wait for their answers."""


def actor_name(run_name: str) -> str:
    """Name of the actor of a run."""
    return f"{PREFIX}{run_name}"


def read_request(line: str | bytes) -> dict[str, Any]:
    """The request of a line of JSON; ValueError saying what is wrong with its form."""
    if len(line) > MAX_REQUEST_BYTES:
        raise ValueError(f"a request has at most {MAX_REQUEST_BYTES} bytes, got {len(line)}")
    try:
        request = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"a request must be JSON: {error!s:.120}") from error
    match request:
        case {"kind": "status" | "stop", **rest} if not rest:
            return request
        case {"kind": "scale", "counts": dict(counts), **rest} if counts and not rest:
            for role, count in counts.items():
                checked_count(f"--{role:.60}", count)
            return request
    raise ValueError(
        f'unknown request {line[:120]!r} (known: {{"kind": "status"}}, {{"kind": "stop"}}, '
        '{"kind": "scale", "counts": {"rollout": 4}})'
    )


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

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Put a request in and wait for its answer; TimeoutError if the run gives none.

        What is no request is answered here: the run cannot even read every object that a process may send.
        """
        try:
            checked = read_request(json.dumps(request))
        except (RecursionError, TypeError, ValueError) as error:
            return {"error": str(error)}
        if len(self._answers) >= MAX_WAITING:
            return {"error": f"{MAX_WAITING} requests wait for an answer already; try again later"}
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((number, checked))
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
