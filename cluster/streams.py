"""Reads a generation stream of a worker: finished slots as (note, reference of their table), in finish order."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.ray_private import streaming
from cluster.waiting import wait_for
from transport.notes import EndOfStream, Parcel, RolloutNote

ITEMS_AHEAD = 64
"""Items (a parcel, or its table) that a worker may yield before they are taken."""


async def finished_slots(
    handle: Any,
    requests: Any,
    sampling: Any,
    *,
    timeout_s: float,
    what: str,
    ended: "asyncio.Future[None] | None" = None,
) -> AsyncGenerator[tuple[tuple[RolloutNote, ...], Any]]:
    """Generate `requests` on the worker of `handle`; yields the notes of a parcel and its table's reference.

    Raises what the worker raised, a RayError if the stream was cut off or the worker has `ended`, TimeoutError if
    no slot is finished for `timeout_s`. Close it (`contextlib.aclosing`): whatever ends the reading early aborts
    the generation.
    """
    stream = handle.generate.options(**streaming(ITEMS_AHEAD)).remote(requests, sampling)
    limits: dict[str, Any] = {"timeout_s": timeout_s, "what": what, "ended": ended}
    is_complete = False
    try:
        while True:
            item: Parcel | EndOfStream = await wait_for(await next_item(stream, **limits), **limits)
            if isinstance(item, EndOfStream):
                is_complete = True
                return
            yield item.notes, await next_item(stream, **limits)
    finally:
        if not is_complete:
            await _cancel(stream)


async def next_item(
    stream: Any, *, timeout_s: float, what: str, ended: "asyncio.Future[None] | None" = None
) -> Any:
    """The next reference of a stream; its end without an `EndOfStream` is an error."""
    try:
        return await wait_for(stream.__anext__(), timeout_s=timeout_s, what=what, ended=ended)
    except StopAsyncIteration:
        raise RayError(f"the stream was cut off while waiting for {what}") from None


async def _cancel(stream: Any) -> None:
    if isinstance(stream, ray.ObjectRefGenerator):
        ray.cancel(stream)
    else:  # of a worker in this process
        await stream.cancel()
