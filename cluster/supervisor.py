"""The stage that watches all workers: asks for heartbeats, suspects workers, ends them, has them restarted.

`cluster/health.py` decides what a look means. `cluster/scaling.py` carries out the restarts; those of the
learner's ranks are the pipeline's, since they fall back together.
"""

import asyncio
import logging
from collections.abc import Mapping

from ray.exceptions import ActorUnavailableError, RayError

from cluster.health import Verdict, WorkerState
from cluster.pool import Pool
from cluster.scaling import Scaling
from cluster.waiting import NO_LIMIT_S, Signal, now, wait_for
from cluster.worker import WATCHED, Worker
from records.events import Events, reason_of
from settings.run import RunConfig

logger = logging.getLogger(__name__)


class Supervisor:
    """Watches every pool of a run."""

    def __init__(
        self, config: RunConfig, *, pools: Mapping[str, Pool], scaling: Scaling, members: Signal, events: Events
    ) -> None:
        """`members` is told of every change of a worker's state."""
        self._limits = config.health
        self._pools = pools
        self._scaling = scaling
        self._members = members
        self._events = events
        self._asked: set[tuple[Worker, int]] = set()  # workers, in one of their lives, that owe an answer
        self._lives: dict[Worker, int] = {}  # of every worker, the one that is watched
        for role, pool in pools.items():
            pool.is_supervised = role != "learner"

    async def run(self) -> None:
        """Watch as long as the pipeline runs; RuntimeError once a pool has no worker left."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(tasks))
            while True:
                pool, worker = await self._members.until(
                    self._next_dead,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: "the death of a worker (there need be none)",
                )
                self._plan_restart(pool, worker)

    def _next_dead(self) -> tuple[Pool, Worker] | None:
        """A dead worker about which nothing has been decided."""
        for pool in self._pools.values():
            if pool.is_supervised:
                for worker in pool.workers:
                    if worker.state is WorkerState.DEAD and not worker.is_awaited:
                        return pool, worker
        return None

    def _plan_restart(self, pool: Pool, worker: Worker) -> None:
        delay_s = worker.health.next_backoff_s()
        if delay_s is None:
            pool.give_up(worker, f"{self._limits.max_restarts} restarts in a row and no request served")
            return
        worker.is_awaited = True
        self._scaling.restart(pool, worker, delay_s)

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
        """Ask all workers and judge them, again and again."""
        looked, period_s = now(), self._limits.heartbeat_s
        last_served = dict.fromkeys(self._pools, looked)
        while True:
            await asyncio.sleep(period_s)
            late_s, looked = now() - looked - period_s, now()
            for role, pool in self._pools.items():
                for worker in [worker for worker in pool.workers if worker.state in WATCHED]:
                    if self._lives.get(worker) != worker.num_lives:  # nobody has listened to it so far
                        self._lives[worker] = worker.num_lives
                        worker.health.begin(looked)
                    if late_s > period_s:
                        worker.health.forgive(late_s)
                    if (worker, worker.num_lives) not in self._asked:
                        self._asked.add((worker, worker.num_lives))
                        tasks.create_task(self._ask(pool, worker, worker.num_lives))
                    self._judge(pool, worker)
                if pool.healthy or late_s > period_s or not pool.is_supervised:
                    last_served[role] = looked
                self._check_pool(pool, looked - last_served[role])

    def _check_pool(self, pool: Pool, seconds: float) -> None:
        if seconds >= self._limits.no_worker_after_s:
            states = ", ".join(f"{worker.name} {worker.state}" for worker in pool.wanted)
            raise RuntimeError(f"no {pool.role} worker could be given work for {seconds:.0f} s: {states}")

    async def _ask(self, pool: Pool, worker: Worker, life: int) -> None:
        """Ask one worker for its heartbeat, and take the answer in."""
        try:
            limit_s, what = 2 * self._limits.dead_after_s, f"the heartbeat of {worker.name}"
            heartbeat = await wait_for(pool.ping(worker), timeout_s=limit_s, what=what)
        except (ActorUnavailableError, TimeoutError) as error:
            logger.info("%s: %s", worker.name, reason_of(error))  # it may be heard again; time tells
        except RayError as error:
            if worker.must_answer(life):
                pool.mark_dead(worker, reason_of(error))
        else:
            if not worker.must_answer(life):
                return
            worker.health.hear(heartbeat, now())
            if heartbeat.error is not None:
                pool.mark_dead(worker, f"its engine: {heartbeat.error}")
            else:
                self._judge(pool, worker)
        finally:
            self._asked.discard((worker, life))

    def _judge(self, pool: Pool, worker: Worker) -> None:
        """Let the worker's state follow what is known of its health."""
        limits = self._limits
        match worker.health.look(now()):
            case Verdict.SILENT:
                pool.mark_dead(worker, f"no answer to heartbeats for {limits.dead_after_s:g} s")
            case Verdict.WEDGED:
                pool.mark_dead(worker, f"its engine has work and made no token for {limits.stall_after_s:g} s")
            case Verdict.SUSPECT if worker.is_healthy:
                pool.doubt(worker, f"no answer to heartbeats for {limits.suspect_after_s:g} s")
            case Verdict.FINE if worker.state is WorkerState.SUSPECT:
                pool.trust(worker)
