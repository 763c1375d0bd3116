"""PROMPTS -> ROLLOUTS: a student engine behind a Ray actor, streaming finished slots as Arrow tables.

worker = RolloutWorker(settings, open_engine)
await worker.start()
await worker.load_weights(manifest, source)
async for item in worker.generate(prompts, sampling): ...   # note, table, note, table, ..., EndOfStream
"""

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.engine import Engine, Generation, GenerationRequest, LoadReport, Sampling
from actors.engine_worker import EngineWorker
from cluster.batches import ROLLOUT_SCHEMA, check_prompts, check_rollouts
from cluster.notes import EndOfStream, RolloutNote
from cluster.transports import WeightSource
from cluster.weights import WeightManifest

logger = logging.getLogger(__name__)


StreamItem = RolloutNote | pa.Table | EndOfStream

_CALLS = itertools.count()


@dataclass(frozen=True)
class Finished:
    """One response of a slot: its prompt row and what was generated."""

    row: dict[str, Any]
    generation: Generation


class RolloutWorker(EngineWorker):
    """Generates responses for slots; serves only after its first verified weight load."""

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Load a published weight set between two engine steps; requests in flight continue with it."""
        return await self._engine.load_weights(manifest, source)

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[StreamItem]:
        """Yield, for every slot as its group is complete, a `RolloutNote` and the slot's rollout table.

        The rows of `prompts` are handed to the engine together. The stream ends with an `EndOfStream`;
        cancelling it aborts what is unfinished.
        """
        async with aclosing(generate_slots(self._engine, prompts, sampling)) as items:
            async for item in items:
                yield item


async def generate_slots(
    engine: Engine, prompts: pa.Table, sampling: Sampling
) -> AsyncGenerator[StreamItem, None]:
    """Generate all rows of `prompts` together; yields note and table of each slot, in finish order."""
    rows = check_prompts(prompts).to_pylist()
    call = next(_CALLS)  # ids stay unique when a slot is issued again
    requests = {f"{row['uid']}/{row['attempt']}/{call}": row for row in rows}
    group_sizes = Counter(row["slot"] for row in rows)
    groups: dict[int, list[Finished]] = defaultdict(list)
    wanted = [GenerationRequest(key, row["prompt_token_ids"], row["seed"]) for key, row in requests.items()]
    async with aclosing(engine.generate(wanted, sampling)) as generations:
        async for generation in generations:
            row = requests[generation.request_id]
            group = groups[row["slot"]]
            group.append(Finished(row, generation))
            if len(group) == group_sizes[row["slot"]]:
                yield rollout_note(group)
                yield rollout_table(groups.pop(row["slot"]))
    yield EndOfStream(num_slots=len(group_sizes))


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


def rollout_table(group: list[Finished]) -> pa.Table:
    """The rollout table of one slot, rows by sample."""
    rows = []
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
