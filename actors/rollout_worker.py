"""PROMPTS -> ROLLOUTS: a student engine behind a Ray actor, streaming finished slots as Arrow tables.

worker = RolloutWorker(settings, open_engine)
await worker.start()
await worker.load_weights(manifest, source)
async for item in worker.generate(prompts, sampling): ...   # Parcel, table, Parcel, table, ..., EndOfStream
"""

import asyncio
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from actors.engine import Engine, EngineSettings, Generation, GenerationRequest, Sampling
from actors.engine_worker import EngineWorker
from actors.weight_receiver import WeightReceiver
from transport.batches import ROLLOUT_SCHEMA, SAMPLED, check_prompts, check_rollouts
from transport.collective import Rendezvous
from transport.notes import EndOfStream, LoadReport, Parcel, RolloutNote
from transport.parcels import plan_parcels
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest

T = TypeVar("T")
logger = logging.getLogger(__name__)

StreamItem = Parcel | pa.Table | EndOfStream

_CALLS = itertools.count()


@dataclass(frozen=True)
class Finished:
    """One response of a slot: its prompt row and what was generated."""

    row: dict[str, Any]
    generation: Generation


class RolloutWorker(EngineWorker):
    """Generates responses for slots; serves only after its first verified weight load."""

    def __init__(self, settings: EngineSettings, open_engine: Callable[[EngineSettings], Engine]) -> None:
        super().__init__(settings, open_engine)
        self._receiver = WeightReceiver()
        self._receiving = ThreadPoolExecutor(1, "weight-receiver")  # starts its thread with the first call

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Load a published weight set between two engine steps; requests in flight continue with it."""
        try:
            return await self._engine.load_weights(manifest, source)
        finally:
            self._receiver.release(manifest)

    async def join_weight_group(self, rendezvous: Rendezvous, rank: int) -> None:
        """Take part in weight broadcasts; returns when all members have joined."""
        await self._receive(self._receiver.join, rendezvous, rank)

    async def receive_weights(self, manifest: WeightManifest) -> float:
        """Receive a broadcast set into the node's file while generation continues; returns the seconds it took.

        `load_weights` finds it there.
        """
        return await self._receive(self._receiver.receive, manifest)

    async def shutdown(self) -> None:
        """Stop the engine and leave the group."""
        self._receiving.shutdown(wait=False, cancel_futures=True)
        await super().shutdown()
        self._receiver.close()

    async def _receive(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._receiving, call, *args)

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[StreamItem]:
        """Yield slots as their groups are complete: a `Parcel` of notes, then the rollout table of its slots.

        The rows of `prompts` are handed to the engine together. Slots that are complete at the same time share a
        parcel while they are small. The stream ends with an `EndOfStream`; cancelling it aborts what is not
        finished.
        """
        async with aclosing(generate_slots(self._engine, prompts, sampling)) as items:
            async for item in items:
                yield item


async def generate_slots(
    engine: Engine, prompts: pa.Table, sampling: Sampling
) -> AsyncGenerator[StreamItem, None]:
    """Generate all rows of `prompts` together; yields parcels and their tables, in finish order."""
    rows = check_prompts(prompts).to_pylist()
    call = next(_CALLS)  # ids stay unique when a slot is issued again
    requests = {f"{row['uid']}/{row['attempt']}/{call}": row for row in rows}
    group_sizes = Counter(row["slot"] for row in rows)
    groups: dict[int, list[Finished]] = defaultdict(list)
    wanted = [GenerationRequest(key, row["prompt_token_ids"], row["seed"]) for key, row in requests.items()]
    generations = engine.generate(wanted, sampling)
    async with aclosing(generations), aclosing(in_bunches(generations)) as bunches:
        async for together in bunches:
            complete: dict[int, list[Finished]] = {}
            for generation in together:
                row = requests[generation.request_id]
                slot = row["slot"]
                groups[slot].append(Finished(row, generation))
                if len(groups[slot]) == group_sizes[slot]:
                    complete[slot] = groups.pop(slot)
            for parcel in plan_parcels((slot, _num_bytes(group)) for slot, group in complete.items()):
                members = [complete[slot] for slot in parcel]
                yield Parcel(tuple(map(rollout_note, members)))
                yield rollout_table(members)
    yield EndOfStream(num_slots=len(group_sizes))


async def in_bunches(items: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """Yield the items that have come since the last bunch was taken, in order; at once when there is one.

    What `items` raises comes after the bunches before it.
    """
    arrived: list[T] = []
    news = asyncio.Event()

    async def collect() -> None:
        try:
            async for item in items:
                arrived.append(item)
                news.set()
        finally:
            news.set()

    collecting = asyncio.create_task(collect())
    try:
        while not collecting.done() or arrived:
            await news.wait()
            news.clear()
            bunch, arrived[:] = arrived[:], []
            if bunch:
                yield bunch
        collecting.result()
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})


def _num_bytes(group: list[Finished]) -> int:
    """About the size of a group in a rollout table."""
    return sum(
        4 * len(f.row["prompt_token_ids"]) + SAMPLED.token_bytes * len(f.generation.token_ids) for f in group
    )


def rollout_note(group: list[Finished]) -> RolloutNote:
    """What the controller must know about a finished slot without reading its table."""
    generations = [finished.generation for finished in group]
    versions = [version for g in generations for version, _ in g.version_runs]
    return RolloutNote(
        slot=group[0].row["slot"],
        attempt=group[0].row["attempt"],
        uids=tuple(sorted(finished.row["uid"] for finished in group)),
        num_tokens=sum(len(f.row["prompt_token_ids"]) + len(f.generation.token_ids) for f in group),
        num_response_tokens=sum(len(g.token_ids) for g in generations),
        num_truncated=sum(g.finish_reason == "length" for g in generations),
        oldest_version=min(versions),
        newest_version=max(versions),
        source=group[0].row["source"],
    )


def rollout_table(groups: Sequence[list[Finished]]) -> pa.Table:
    """The rollout table of complete groups: slot after slot, rows by sample."""
    rows = []
    for group in groups:
        for finished in sorted(group, key=lambda f: f.row["sample"]):
            g = finished.generation
            versions = [{"version": version, "num_tokens": num} for version, num in g.version_runs]
            rows.append(
                finished.row
                | {
                    "response_token_ids": g.token_ids,
                    "behaviour_log_probs": g.log_probs,
                    "weight_versions": versions,
                    "finish_reason": g.finish_reason,
                }
            )
    return check_rollouts(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA))
