"""Adds workers to the pools of engines and retires them while a run goes on; one task for each such worker.

An added worker is placed, started, and (a student engine) brought to the newest weights before it is given work. A
retired one is given nothing more and finishes what it has; after `cluster.drain_timeout_s` others do the rest.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ray.exceptions import RayError

from cluster.config import RunConfig
from cluster.events import Events, reason_of
from cluster.pool import Pool
from cluster.waiting import NO_LIMIT_S, Signal, wait_for
from cluster.weight_store import WeightStore
from cluster.workers import Worker

UP, DOWN = "scale up", "scale down"


@dataclass(frozen=True)
class Change:
    """What a resize does to one pool."""

    role: str
    before: int
    after: int
    workers: tuple[str, ...]
    """Names of the workers that are added or retired."""

    def __str__(self) -> str:
        fate = "nothing to do"
        if self.after > self.before:
            fate = f"to start: {', '.join(self.workers)}"
            fate += ", to serve once on the newest weights" if self.role == "rollout" else ""
        elif self.after < self.before:
            fate = f"to finish what is in flight, then to end: {', '.join(self.workers)}"
        return f"{self.role} {self.before} -> {self.after}: {fate}"


class Scaling:
    """The stage that carries out resizes; a failed start is an event and does not end the run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pools: Mapping[str, Pool],
        weights: WeightStore,
        signal: Signal,
        events: Events,
    ) -> None:
        self._drain_timeout_s = config.cluster.drain_timeout_s
        self._pools = pools
        self._weights = weights
        self._signal = signal
        self._events = events
        self._jobs: deque[tuple[Worker, Callable[[], Awaitable[None]]]] = deque()
        self._starting: dict[Worker, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Carry out resizes as long as the pipeline runs."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                worker, job = await self._signal.until(
                    lambda: self._jobs.popleft() if self._jobs else None,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: "a change of the number of workers (there need be none)",
                )
                task = tasks.create_task(self._carry_out(worker, job))
                if worker.is_starting:
                    self._starting[worker] = task

    def resize(self, role: str, count: int, reason: str) -> Change:
        """Begin to bring a pool to `count` workers, which must be >= 1; returns what will happen.

        May be called before `run`, which carries it out. Workers that are still starting are retired first, then
        the newest ones.
        """
        if count < 1:
            raise ValueError(f"{role} must be >= 1, got {count} (nearest valid: 1)")
        pool = self._pools[role]
        wanted = pool.wanted
        added = [pool.add() for _ in range(count - len(wanted))]
        retired = sorted(reversed(wanted), key=lambda worker: worker.is_healthy)[: max(0, len(wanted) - count)]
        for worker in added:
            self._jobs.append((worker, partial(self._grow, pool, worker)))
        for worker in retired:
            if worker.is_starting:
                pool.withdraw(worker)
                self._jobs.append((worker, partial(self._give_up, pool, worker)))
            else:
                pool.drain(worker)
                self._jobs.append((worker, partial(self._shrink, pool, worker)))
        change = Change(role, len(wanted), count, tuple(worker.name for worker in added or retired))
        counts = {"from": change.before, "to": change.after}
        self._events.add("scaled", role=role, **counts, workers=change.workers, reason=reason)
        self._signal.changed()
        return change

    async def _carry_out(self, worker: Worker, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        finally:
            self._starting.pop(worker, None)

    async def _grow(self, pool: Pool, worker: Worker) -> None:
        """Start an added worker and let it serve."""
        try:
            if worker.is_starting:
                await pool.launch(worker, UP)
                if pool.role == "rollout":
                    await self._weights.prepare(worker)
        except (RayError, TimeoutError, RuntimeError) as error:
            pool.mark_dead(worker, f"{UP}: {reason_of(error)}", event="worker_not_started")
        if worker.is_starting:
            pool.admit(worker)

    async def _give_up(self, pool: Pool, worker: Worker) -> None:
        """End a worker that was still starting."""
        task = self._starting.pop(worker, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await pool.end(worker, DOWN)

    async def _shrink(self, pool: Pool, worker: Worker) -> None:
        """End a draining worker once it is idle, or its time is over."""
        limit_s, reason = self._drain_timeout_s, DOWN
        idle = self._signal.until(
            lambda: worker.is_idle or worker.is_gone,
            timeout_s=NO_LIMIT_S,
            what=lambda: f"what {worker.name} has in flight",
        )
        try:
            await wait_for(idle, timeout_s=limit_s, what=f"the end of what {worker.name} has in flight")
        except TimeoutError:
            reason = f"{DOWN}; not finished after {limit_s:g} s"
        if not worker.is_gone:
            pool.withdraw(worker)
            await pool.end(worker, reason)
