"""The learner as the controller sees it: one call per phase, made on every rank at once.

Each call has a limit, and ranks answer heartbeats beside it, so that a frozen rank is found: collectives among
ranks may block far longer than that. A group that has lost a rank is of no use: `LearnerLostError` says so, and
`restart` makes it anew, with the weights of the start.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayError

from cluster.errors import is_lost, is_mistake
from cluster.health import WorkerState
from cluster.pool import Pool
from cluster.waiting import now, together, wait_for
from controller.broadcasts import WeightBroadcast
from controller.lanes import Rollout
from controller.weight_store import PublishedWeights
from records.checkpoints import WriteReport
from records.events import reason_of
from settings.cluster import ClusterConfig
from settings.exit_codes import FailedError
from transport.notes import StepResult
from transport.weight_sources import TRANSPORTS
from transport.weights import WeightManifest

_STAGES = {"begin_checkpoint": "checkpoint", "load_checkpoint": "start", "export": "export"}
"""What the run's timeline calls these calls; the others take no time of the learner's."""


class LearnerLostError(Exception):
    """A rank died, froze, or failed in a way that leaves the group useless; it can be restarted."""


class TablesLostError(Exception):
    """Scored tables of a batch do not exist any more; the learner is well."""

    def __init__(self, slots: Sequence[int], error: BaseException) -> None:
        super().__init__(f"scored tables of slots {list(slots)} are lost: {reason_of(error)}")
        self.slots = tuple(slots)
        self.error = error


class LearnerGroup:
    """All ranks of the learner."""

    def __init__(
        self,
        pool: Pool,
        config: ClusterConfig,
        *,
        transport: str = "object_store",
        broadcasts: WeightBroadcast | None = None,
    ) -> None:
        """`transport` is how published weights travel: a name in `TRANSPORTS`. Some need `broadcasts`."""
        self._pool = pool
        self._config = config
        self._source_of = TRANSPORTS[transport]
        self._broadcasts = broadcasts

    async def setup(self) -> None:
        """Rendezvous at rank 0 and build the model and optimizer on every rank."""
        first = self._pool.workers[0].handle
        start, start_s = now(), self._config.start_timeout_s
        address: tuple[str, int] = await wait_for(
            first.rendezvous.remote(), timeout_s=start_s, what="the learner: rendezvous at rank 0"
        )
        await self._pool.call("setup", *address, timeout_s=start_s)
        await self._pool.note_started(now() - start)
        for worker in self._pool.workers:
            if worker.state is WorkerState.RESTARTING:
                self._pool.make_stale(worker)
        self._pool.admit(*self._pool.workers)

    async def start(self) -> None:
        """`setup` for a run's start; FailedError naming the ranks that have died meanwhile."""
        try:
            await self.setup()
        except RayError as error:
            if silent := await self._silent():
                raise FailedError(
                    f"{', '.join(silent)} died while the learner started: {reason_of(error)}"
                ) from error
            raise

    async def restart(self, reason: str) -> None:
        """End every rank, place and start all of them anew; LearnerLostError if that fails."""
        for worker in self._pool.workers:
            self._pool.mark_dead(worker, reason, event="worker_ended")
        async with self._losing("restart", stage="start"):
            for worker in self._pool.workers:
                worker.become(WorkerState.RESTARTING)
            await self._pool.create(self._pool.workers)
            await self.setup()

    def check_is_whole(self) -> None:
        """LearnerLostError if a rank is known to be dead: between two calls only its heartbeats tell."""
        dead = [worker.name for worker in self._pool.workers if worker.is_gone]
        if dead:
            raise LearnerLostError(f"between two steps: {', '.join(dead)} is dead")

    async def train(self, step: int, batch: Sequence[Rollout]) -> StepResult:
        """Take one optimizer step on a batch, split over the ranks by tokens.

        Raises TablesLostError, before any rank has begun, if tables of the batch cannot be had.
        """
        shares = split_by_tokens(batch, len(self._pool.workers))
        tables = [dict.fromkeys(scored.table for scored in share) for share in shares]
        async with self._losing(f"training step {step}", stage="train"):
            await self._fetch(step, batch, tables)
            calls = [
                worker.handle.train_step.remote(step, *held, slots=[each.note.slot for each in share])
                for worker, held, share in zip(self._pool.workers, tables, shares, strict=True)
            ]
            what, ends = f"training step {step}", [worker.ended for worker in self._pool.workers]
            waits = (self._wait(call, what, ended) for call, ended in zip(calls, ends, strict=True))
            return (await together(waits))[0]

    async def _fetch(self, step: int, batch: Sequence[Rollout], tables: Sequence[Any]) -> None:
        """Bring every rank's tables to its node: ranks that wait for one another must not wait for a table too."""
        what = f"tables of step {step}"
        calls = [
            self._wait(worker.handle.fetch.remote(*held), what)
            for worker, held in zip(self._pool.workers, tables, strict=True)
        ]
        errors = [e for e in await asyncio.gather(*calls, return_exceptions=True) if isinstance(e, BaseException)]
        for error in errors:
            if not is_lost(error):
                raise error
        if errors:
            raise TablesLostError(await self._slots_of_lost_tables(batch), errors[0])

    async def _slots_of_lost_tables(self, batch: Sequence[Rollout]) -> list[int]:
        first, lost = self._pool.workers[0].handle, []
        for table in dict.fromkeys(scored.table for scored in batch):
            try:
                await self._wait(first.fetch.remote(table), "a table, alone")
            except RayError as error:
                if not is_lost(error):
                    raise
                lost += [scored.note.slot for scored in batch if scored.table is table]
        return lost

    async def publish(self, incarnation: int, version: int) -> PublishedWeights:
        """Gather the weights bucket by bucket; returns the manifest and where engines get the bytes.

        With broadcasts it returns when they have reached the nodes of the engines, or have failed.
        """
        start = now()
        async with self._losing(f"publishing v{version}", stage="publish"):
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

    @asynccontextmanager
    async def _losing(self, what: str, *, stage: str | None) -> AsyncIterator[None]:
        """Say with LearnerLostError that a failure made the group useless; mistakes are raised as they are.

        `stage` is what the run's timeline calls it.
        """
        try:
            workers = [] if stage is None else [worker.name for worker in self._pool.workers]
            with self._pool.timeline.lasting(stage or "", *workers):
                yield
        except (RayError, TimeoutError) as error:
            if is_mistake(error) and not await self._silent():
                raise
            raise LearnerLostError(f"{what}: {reason_of(error)}") from error

    async def _silent(self) -> list[str]:
        """The ranks that do not answer: without any, what a rank raised is no consequence of another's death."""
        pings = (
            wait_for(
                self._pool.ping(worker), timeout_s=self._pool.health.dead_after_s, what=f"ping of {worker.name}"
            )
            for worker in self._pool.workers
        )
        answers = await asyncio.gather(*pings, return_exceptions=True)
        found = zip(self._pool.workers, answers, strict=True)
        return [worker.name for worker, answer in found if isinstance(answer, RayError | TimeoutError)]

    async def _on_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        async with self._losing(method, stage=_STAGES.get(method)):
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

    async def _wait(self, awaitable: Any, what: str, ended: "asyncio.Future[None] | None" = None) -> Any:
        limits: dict[str, Any] = {"timeout_s": self._config.step_timeout_s, "ended": ended}
        return await wait_for(awaitable, what=f"the learner: {what}", **limits)


def split_by_tokens(batch: Sequence[Rollout], num_ranks: int) -> list[list[Rollout]]:
    """Split slots over ranks so that token counts are close: largest first, each to the lightest rank."""
    shares: list[list[Rollout]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for scored in sorted(batch, key=lambda s: (-s.note.num_tokens, s.note.slot)):
        rank = tokens.index(min(tokens))
        shares[rank].append(scored)
        tokens[rank] += scored.note.num_tokens
    return [sorted(share, key=lambda s: s.note.slot) for share in shares]
