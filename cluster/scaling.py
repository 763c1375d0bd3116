"""Adds, restarts and retires workers of the engine pools during a run; each is a task of its own.

An added or restarted worker is placed and started; a student engine then loads the newest weights, a scorer must
agree with its replicas, before it is given work. A retired one is given nothing more and finishes what it has;
after `cluster.drain_timeout_s` others do the rest.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ray.exceptions import RayError

from cluster.health import WorkerState
from cluster.mailbox import checked_count
from cluster.pool import Pool
from cluster.waiting import NO_LIMIT_S, Signal, now, wait_for
from cluster.worker import Worker
from records.events import Events, reason_of
from settings.run import RunConfig

UP, DOWN, RESTART = "scale up", "scale down", "restart"

MAX_NAMED = 20
"""Workers that an answer names."""

MAX_PLACING = 100
"""Workers of a pool that wait for capacity at the same time, of however many that are wanted."""

RETIRED_FIRST = {WorkerState.HEALTHY: 2, WorkerState.SUSPECT: 1}
"""Workers are retired in this order; those that do not serve yet, or not any more, before all others (0)."""


@dataclass(frozen=True)
class Change:
    """What a resize does to one pool."""

    role: str
    before: int
    after: int
    workers: tuple[str, ...]
    """Names of the workers that are added or retired."""

    def __str__(self) -> str:
        fate, names = "nothing to do", ", ".join(self.workers[:MAX_NAMED])
        if len(self.workers) > MAX_NAMED:
            names += f" and {len(self.workers) - MAX_NAMED} more"
        if self.after > self.before:
            fate = f"to start: {names}"
            fate += ", to serve once on the newest weights" if self.role == "rollout" else ""
        elif self.after < self.before:
            fate = f"to finish what is in flight, then to end: {names}"
        return f"{self.role} {self.before} -> {self.after}: {fate}"


class Scaling:
    """The stage that carries out resizes; a failed start is an event and does not end the run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pools: Mapping[str, Pool],
        signal: Signal,
        events: Events,
    ) -> None:
        self._drain_timeout_s = config.cluster.drain_timeout_s
        self._pools = pools
        self._signal = signal
        self._events = events
        self._jobs: deque[tuple[Worker, Callable[[], Awaitable[None]]]] = deque()
        self._starting: dict[Worker, asyncio.Task[None]] = {}
        self._placing = {role: asyncio.Semaphore(MAX_PLACING) for role in pools}

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
                if worker.state in (WorkerState.STARTING, WorkerState.DEAD):
                    self._starting[worker] = task

    def resize(self, role: str, count: int, reason: str) -> Change:
        """Begin to bring a pool to `count` workers, which must be >= 1; returns what will happen.

        May be called before `run`, which carries it out. Workers that do not serve are retired first, then the
        newest ones.
        """
        checked_count(role, count)
        pool = self._pools[role]
        wanted = pool.wanted
        added = [pool.add() for _ in range(count - len(wanted))]
        in_order = sorted(reversed(wanted), key=lambda worker: RETIRED_FIRST.get(worker.state, 0))
        retired = in_order[: max(0, len(wanted) - count)]
        for worker in added:
            self._jobs.append((worker, partial(self._grow, pool, worker)))
        for worker in retired:
            if worker.state not in RETIRED_FIRST:
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

    def restart(self, pool: Pool, worker: Worker, delay_s: float) -> None:
        """Begin to bring a dead worker back after a delay, with a new actor."""
        self._jobs.append((worker, partial(self._revive, pool, worker, delay_s)))
        self._signal.changed()

    async def _revive(self, pool: Pool, worker: Worker, delay_s: float) -> None:
        """Wait until nothing of the worker's earlier life is in flight and the delay is over; start it anew."""
        died_at = now()
        await asyncio.sleep(delay_s)
        await self._signal.until(
            lambda: worker.is_idle, timeout_s=NO_LIMIT_S, what=lambda: f"calls to {worker.name}, which has died"
        )
        if worker.state is WorkerState.DEAD:
            worker.become(WorkerState.RESTARTING)
            await self._bring_up(pool, worker, RESTART)
            if not worker.is_gone:
                seconds = round(now() - died_at, 3)
                self._events.add("worker_restarted", worker=worker.name, life=worker.num_lives, seconds=seconds)

    async def _grow(self, pool: Pool, worker: Worker) -> None:
        """Start an added worker."""
        if worker.is_starting:
            await self._bring_up(pool, worker, UP)

    async def _bring_up(self, pool: Pool, worker: Worker, reason: str) -> None:
        """Place and start a worker; it serves, a student engine once it has loaded the newest weights.

        A failed start is a death: the supervisor decides about the next one.
        """
        not_started = partial(pool.mark_dead, worker, event="worker_not_started")
        try:
            async with self._placing[pool.role]:
                await pool.create([worker])
        except (RayError, TimeoutError) as error:
            worker.health.excuse()  # missing capacity, or a head that is away, is not the worker's fault
            not_started(f"{reason}: {reason_of(error)}")
            return
        try:
            await pool.launch(worker, reason)
        except (RayError, TimeoutError, ValueError) as error:
            not_started(f"{reason}: {reason_of(error)}")
            return
        if not worker.is_gone:
            pool.make_stale(worker)
            if pool.role != "rollout":
                pool.admit(worker)

    async def _give_up(self, pool: Pool, worker: Worker) -> None:
        """End a worker that did not serve yet, or not any more."""
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
