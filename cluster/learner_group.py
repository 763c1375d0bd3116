"""The learner as the controller sees it: one call per phase, made on every rank at once.

Each call has a limit, so that a frozen rank is found: collectives among ranks may block far longer than that.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from cluster.broadcasts import Broadcasts
from cluster.checkpoints import WriteReport
from cluster.clock import now
from cluster.config import ClusterConfig
from cluster.pool import Pool
from cluster.scoring import ScoredSlot
from cluster.transports import TRANSPORTS
from cluster.waiting import together, wait_for
from cluster.weight_store import PublishedWeights
from cluster.weights import WeightManifest


class StepResult(Protocol):
    """What a rank reports of one optimizer step; metrics are reduced over ranks."""

    metrics: dict[str, float]
    was_skipped: bool


class LearnerGroup:
    """All ranks of the learner."""

    def __init__(
        self,
        pool: Pool,
        config: ClusterConfig,
        *,
        transport: str = "object_store",
        broadcasts: Broadcasts | None = None,
    ) -> None:
        """`transport` is how published weights travel: a name in `TRANSPORTS`. Some need `broadcasts`."""
        self._pool = pool
        self._config = config
        self._source_of = TRANSPORTS[transport]
        self._broadcasts = broadcasts

    async def setup(self) -> None:
        """Rendezvous at rank 0 and build the model and optimizer on every rank."""
        first = self._pool.workers[0].handle
        start_s = self._config.start_timeout_s
        address: tuple[str, int] = await wait_for(
            first.rendezvous.remote(), timeout_s=start_s, what="the learner: rendezvous at rank 0"
        )
        await self._on_all("setup", *address, timeout_s=start_s)
        self._pool.admit(*self._pool.workers)

    async def train(self, step: int, batch: Sequence[ScoredSlot]) -> StepResult:
        """Take one optimizer step on a batch, split over the ranks by tokens."""
        shares = split_by_tokens(batch, len(self._pool.workers))
        calls = [
            worker.handle.train_step.remote(
                step, *dict.fromkeys(scored.table for scored in share), slots=[each.note.slot for each in share]
            )
            for worker, share in zip(self._pool.workers, shares, strict=True)
        ]
        return (await together(self._wait(call, f"training step {step}") for call in calls))[0]

    async def publish(self, incarnation: int, version: int) -> PublishedWeights:
        """Gather the weights bucket by bucket; returns the manifest and where engines get the bytes.

        With broadcasts it returns when they have reached the nodes of the engines, or have failed.
        """
        start = now()
        streams = [
            worker.handle.publish.options(num_returns="streaming").remote(incarnation, version)
            for worker in self._pool.workers
        ]
        refs = (await together(self._collect(stream, version) for stream in streams))[0]
        manifest: WeightManifest = await self._wait(refs[-1], f"manifest of v{version}")
        source = self._source_of(manifest, refs[:-1], self._config.load_timeout_s)
        publish_s = now() - start
        if self._broadcasts is not None:
            await self._broadcasts.spread(manifest)
        return PublishedWeights(manifest, source, publish_s)

    async def begin_checkpoint(self, folder: str) -> int:
        """Let every rank take its state, to be written to a folder; returns the number of ranks."""
        return len(await self._on_all("begin_checkpoint", folder, timeout_s=self._config.step_timeout_s))

    async def written_checkpoint(self) -> list[WriteReport | None]:
        """What each rank has written of the checkpoint begun last; None for one that still writes."""
        return await self._on_all("written_checkpoint", timeout_s=self._config.step_timeout_s)

    async def load_checkpoint(self, path: str) -> float:
        """Restore model, optimizer and random state on every rank; seconds of a conversion, if there was one."""
        return max(await self._on_all("load_checkpoint", path, timeout_s=self._config.step_timeout_s))

    async def export(self, path: str) -> None:
        """Write the student as a Hugging Face folder."""
        await self._on_all("export", path, timeout_s=self._config.step_timeout_s)

    async def _on_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        return await self._pool.call(method, *args, timeout_s=timeout_s)

    async def _collect(self, stream: Any, version: int) -> list[Any]:
        refs: list[Any] = []
        while True:
            try:
                refs.append(await self._wait(stream.__anext__(), f"publishing v{version}"))
            except StopAsyncIteration:
                break
        if refs:
            await self._wait(refs[-1], f"publishing v{version}")  # raises what the rank raised
        return refs

    async def _wait(self, awaitable: Any, what: str) -> Any:
        return await wait_for(awaitable, timeout_s=self._config.step_timeout_s, what=f"the learner: {what}")


def split_by_tokens(batch: Sequence[ScoredSlot], num_ranks: int) -> list[list[ScoredSlot]]:
    """Split slots over ranks so that token counts are close: largest first, each to the lightest rank."""
    shares: list[list[ScoredSlot]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for scored in sorted(batch, key=lambda s: (-s.note.num_tokens, s.note.slot)):
        rank = tokens.index(min(tokens))
        shares[rank].append(scored)
        tokens[rank] += scored.note.num_tokens
    return [sorted(share, key=lambda s: s.note.slot) for share in shares]
