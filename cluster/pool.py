"""A pool of Ray actors of one role: placed, started, watched, counted, closed.

Workers can be added (`add`, `create`, `launch`, then `admit` once they may serve) and retired (`drain`,
`withdraw`, `end`) at any time; `cluster/scaling.py` does it. Names are never used twice.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from typing import Any

from ray.exceptions import RayError

from cluster.errors import start_of
from cluster.health import Health, WorkerState
from cluster.placement import Demand
from cluster.ray_actors import HEALTH_GROUP, WorkerSpec, let_go, worker_actor
from cluster.replica_check import ReplicaCheck
from cluster.reservation import Reservation, reserve
from cluster.waiting import NO_LIMIT_S, Signal, in_thread, together, wait_for
from cluster.worker import Worker
from records.events import Events, reason_of
from records.timeline import Timeline
from settings.cluster import ClusterConfig, HealthConfig
from transport.notes import Heartbeat

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 10.0
"""Maximum time for a worker to stop by itself."""


class Pool:
    """The workers of one role. `build(index)` says how worker `index` is made."""

    def __init__(
        self,
        demand: Demand,
        build: Callable[[int], WorkerSpec],
        *,
        config: ClusterConfig,
        events: Events,
        health: HealthConfig | None = None,
        replica_check: ReplicaCheck | None = None,
    ) -> None:
        """`replica_check`: what a started worker must pass before it serves."""
        self.role = demand.role
        self.health = health or HealthConfig()
        self.is_supervised = False
        """Whether dead workers are restarted (`cluster/supervisor.py`); otherwise they are given up."""
        self.replica_check = replica_check
        self._is_async = True
        self.demand = demand
        self._build = build
        self._config = config
        self._events = events
        self._num_made = 0
        self.workers: list[Worker] = []
        self._releases: list[Thread] = []
        self.signal = Signal()
        """Told of every change of a worker's state; a pipeline puts its own in this place."""
        self.timeline = Timeline()
        """Where the uses of workers are noted; a run puts its own in this place."""

    @property
    def healthy(self) -> list[Worker]:
        """Workers that work is given to."""
        return [worker for worker in self.workers if worker.is_healthy]

    @property
    def serving(self) -> list[Worker]:
        """Workers that slots may be started on: those that are healthy and not borrowed for an evaluation."""
        return [worker for worker in self.workers if worker.takes_slots]

    @property
    def wanted(self) -> list[Worker]:
        """Workers that are given work, or will be: neither draining nor retired."""
        return [worker for worker in self.workers if worker.is_wanted]

    async def place(self, turn: asyncio.Lock | None = None) -> None:
        """Reserve resources and create the actors; TimeoutError saying what is waited for.

        Pools that are placed at the same time share a `turn`.
        """
        turn = turn or asyncio.Lock()
        workers = [self.add() for _ in range(self.demand.count)]
        if self.demand.is_one_group:
            await self.create(workers, turn)
            return
        await together(self.create([worker], turn) for worker in workers)  # close() frees what is placed

    async def start(self) -> None:
        """Let every worker load its engine, all at the same time."""
        await together(self._start_first(worker) for worker in self.workers)
        for worker in self.workers:
            await self._verify(worker)
        self.admit(*self.workers)

    async def _start_first(self, worker: Worker) -> None:
        with start_of(worker.name):
            await self._start(worker, "run start")

    def admit(self, *workers: Worker) -> None:
        """Let these started workers be given work."""
        for worker in workers:
            self._enter(worker, WorkerState.HEALTHY)
            if worker.num_lives > 1:
                self._events.add("worker_readmitted", worker=worker.name, life=worker.num_lives)

    def make_stale(self, worker: Worker) -> None:
        """Give the worker no work until it has loaded the weights that count now."""
        worker.version = -1
        self._enter(worker, WorkerState.STALE)

    def _enter(self, worker: Worker, state: WorkerState) -> None:
        worker.become(state)
        self.signal.changed()

    async def some_healthy(self) -> list[Worker]:
        """Wait for a worker that work can be given to, and return all of them."""
        return await self.signal.until(
            lambda: self.healthy, timeout_s=NO_LIMIT_S, what=lambda: f"a {self.role} worker that is starting"
        )

    async def call(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call `method` on every wanted worker and return the results in worker order."""
        what = f"{self.role}.{method}"
        calls = [(getattr(worker.handle, method).remote(*args), worker.ended) for worker in self.wanted]
        return await together(wait_for(ref, timeout_s=timeout_s, what=what, ended=ended) for ref, ended in calls)

    @contextmanager
    def use(self, worker: Worker, stage: str = "other") -> Iterator[None]:
        """Count the worker as busy meanwhile: a draining one is not shut down before its limit.

        `stage` is what the run's timeline calls it, and the event of the worker's death.
        """
        worker.uses[stage] += 1
        try:
            with self.timeline.lasting(stage, worker.name):
                yield
        finally:
            worker.uses[stage] -= 1
            if not worker.is_healthy:  # someone may wait for the end of what it has in flight
                self.signal.changed()

    # -- growing and shrinking --

    def add(self) -> Worker:
        """Enter one more worker, STARTING and under a new name; nothing is placed yet."""
        worker = Worker(f"{self.role}-{self._num_made}", health=Health(self.health, now=0.0))
        self._num_made += 1
        self.workers.append(worker)
        self.signal.changed()
        return worker

    async def create(self, workers: list[Worker], turn: asyncio.Lock | None = None) -> None:
        """Reserve one group for added or dead workers (one, or all of a pool that is one group) and create actors.

        TimeoutError without capacity.
        """

        def held() -> Counter[str]:
            return Counter(worker.node_id for worker in self.workers if worker.placement is not None)

        names, timeout_s = [worker.name for worker in workers], self._config.placement_timeout_s
        await self._released()
        reservation = await reserve(self.demand, names, held, timeout_s=timeout_s, turn=turn or asyncio.Lock())
        for index, worker in enumerate(workers):
            worker.handle, worker.placement = None, reservation.group
            worker.ended = asyncio.get_running_loop().create_future()
            worker.node_id, worker.node = reservation.nodes[index]
        for index, worker in enumerate(workers):
            await self._open(worker, reservation, index, timeout_s)

    async def note_started(self, seconds: float) -> None:
        """Record that workers that were set up together have started."""
        for worker in self.workers:
            await self._note_started(worker, "run start" if worker.num_lives == 1 else "restart", seconds)

    async def launch(self, worker: Worker, reason: str) -> None:
        """Start the engine of a placed worker; TimeoutError, the RayError of its start, or ValueError if it does
        not agree with its replicas. It still has to be admitted.
        """
        await self._start(worker, reason)
        await self._verify(worker)

    async def _verify(self, worker: Worker) -> None:
        if self.replica_check is not None:
            await self.replica_check.ask(worker)

    def drain(self, worker: Worker) -> None:
        """Give a healthy worker nothing more; ValueError if it is the last one of its pool that is wanted."""
        if self.wanted == [worker]:
            raise ValueError(f"{worker.name} is the last {self.role} worker and cannot be drained")
        worker.become(WorkerState.DRAINING)
        self.signal.changed()

    def withdraw(self, worker: Worker) -> None:
        """Want a worker no more: a starting one that never served, or one that has drained. `end` frees it."""
        worker.become(WorkerState.RETIRED)
        self.signal.changed()

    async def end(self, worker: Worker, reason: str) -> None:
        """Shut a withdrawn worker down and free its placement group; what it still works on fails at once."""
        await self._end(worker, gracefully=True)
        self._events.add("worker_retired", worker=worker.name, reason=reason)
        self.signal.changed()

    # -- health and end --

    def ping(self, worker: Worker) -> Awaitable[Heartbeat]:
        """Ask the worker for its heartbeat."""
        group = {} if self._is_async else {"concurrency_group": HEALTH_GROUP}
        return worker.handle.ping.options(**group).remote()

    async def examine(self, worker: Worker, error: BaseException) -> None:
        """After a failed call: mark the worker dead unless it answers and its engine works.

        The error alone does not tell: a call also fails with the death of the worker its arguments came from.
        """
        if worker.is_gone:
            return
        life = worker.num_lives
        try:
            timeout_s = self.health.dead_after_s
            heartbeat = await wait_for(self.ping(worker), timeout_s=timeout_s, what=f"ping of {worker.name}")
        except (RayError, TimeoutError) as silence:
            found = f"ping: {reason_of(silence)}"
        else:
            found = f"its engine: {heartbeat.error}" if heartbeat.error is not None else None
        if found is not None and worker.must_answer(life):
            self.mark_dead(worker, f"{reason_of(error)}; {found}")

    def doubt(self, worker: Worker, reason: str) -> None:
        """Give a healthy worker no new work until it is heard again."""
        worker.become(WorkerState.SUSPECT)
        self._events.add("worker_suspect", worker=worker.name, reason=reason)
        self.signal.changed()

    def trust(self, worker: Worker) -> None:
        """A doubted worker has answered: it is given work again."""
        worker.become(WorkerState.HEALTHY)
        self._events.add("worker_heard", worker=worker.name)
        self.signal.changed()

    def succeed(self, worker: Worker) -> None:
        """Note that a worker has served a request."""
        worker.health.succeed()

    def blame(self, worker: Worker | None, reason: str) -> None:
        """Note that what failed on `worker` has succeeded on another; too often in a row, and it is replaced."""
        if worker in self.healthy and worker is not None and worker.health.blame():
            num = self.health.max_failed_requests
            self.mark_dead(worker, f"{num} requests in a row failed, and succeeded on others: {reason}")

    def mark_dead(self, worker: Worker, reason: str, *, event: str = "worker_died") -> None:
        """Kill the worker, free what it reserved, and give it nothing more until it is restarted.

        What it still works on fails at once, and so is repeated elsewhere. Without a supervisor it is given up.
        """
        if worker.is_gone:
            return
        was_draining = not worker.is_wanted
        worker.uses_at_death = +worker.uses
        worker.become(WorkerState.DEAD)
        self._free(worker)
        known = {"node": worker.node, "pid": worker.pid, "doing": dict(worker.uses_at_death)}
        self._events.add(event, worker=worker.name, **known, reason=reason)
        if was_draining:
            worker.become(WorkerState.RETIRED)
        elif not self.is_supervised and not self.demand.is_one_group:
            self.give_up(worker, reason)
        self.signal.changed()

    def give_up(self, worker: Worker, reason: str) -> None:
        """Want a dead worker no more. RuntimeError if it was the last one of its pool."""
        worker.become(WorkerState.RETIRED)
        self._events.add("worker_given_up", worker=worker.name, reason=reason)
        self.signal.changed()
        if not self.wanted:
            raise RuntimeError(f"no {self.role} worker is left; {worker.name} was given up last: {reason}")

    async def close(self, *, gracefully: bool = True) -> None:
        """Ask every worker to stop, unless not `gracefully`; then kill it and free its resources."""
        await asyncio.gather(*(self._close(worker, gracefully) for worker in self.workers if worker.placement))
        self.workers = []

    async def _close(self, worker: Worker, gracefully: bool) -> None:
        await self._end(worker, gracefully)
        self._events.add("worker_retired", worker=worker.name, reason="run end")

    async def _open(self, worker: Worker, reservation: Reservation, index: int, timeout_s: float) -> None:
        """Create the worker's actor in one bundle of a placement group."""
        spec = self._build(int(worker.name.rpartition("-")[2]))
        self._is_async = spec.is_async
        make = partial(worker_actor, spec, self.demand, reservation.group, index)
        handle = await in_thread(make, timeout_s=timeout_s, what=f"the actor of {worker.name}")
        if worker.placement is reservation.group:  # else it was ended meanwhile, and the actor with its group
            worker.handle = handle
        worker.num_lives += 1
        worker.pid = 0

    async def _start(self, worker: Worker, reason: str) -> None:
        seconds: float = await wait_for(
            worker.handle.start.remote(), timeout_s=self._config.start_timeout_s, what=f"start of {worker.name}"
        )
        await self._note_started(worker, reason, seconds)

    async def _note_started(self, worker: Worker, reason: str, seconds: float) -> None:
        heartbeat = await wait_for(
            self.ping(worker), timeout_s=self.health.dead_after_s, what=f"first ping of {worker.name}"
        )
        worker.pid = heartbeat.pid
        self._events.add(
            "worker_started",
            worker=worker.name,
            node=worker.node,
            pid=heartbeat.pid,
            life=worker.num_lives,
            reason=reason,
            seconds=round(seconds, 3),
        )

    async def _end(self, worker: Worker, gracefully: bool) -> None:
        try:
            if gracefully and worker.handle is not None and worker.state is not WorkerState.DEAD:
                what = f"shutdown of {worker.name}"
                await wait_for(worker.handle.shutdown.remote(), timeout_s=SHUTDOWN_TIMEOUT_S, what=what)
        except (RayError, TimeoutError) as error:
            logger.info("%s did not stop by itself: %s", worker.name, reason_of(error))
        self._free(worker)
        await self._released()

    def _free(self, worker: Worker) -> None:
        """Kill the actor, if there is one, and give back what it reserved: a shared group with its last one.

        Ray's head, which may be away, is told in a thread: the workers that live continue meanwhile.
        """
        if worker.placement is not None:
            group, worker.placement = worker.placement, None
            if worker.ended is not None and not worker.ended.done():
                worker.ended.set_result(None)
            is_last = all(other.placement is not group for other in self.workers)
            self._releases.append(let_go(actor=worker.handle, group=group if is_last else None))

    async def _released(self) -> None:
        """Wait a while until Ray has taken back what workers no longer need."""
        releases = [thread for thread in self._releases if thread.is_alive()]
        self._releases = releases
        if releases:
            with suppress(TimeoutError):
                join = partial(deque, (thread.join() for thread in releases), 0)
                await in_thread(join, timeout_s=SHUTDOWN_TIMEOUT_S, what="Ray's head")
