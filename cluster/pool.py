"""A pool of Ray actors of one role: placed, started, counted, closed. The only place that applies `ray.remote`.

Workers can be added (`add`, `launch`, then `admit` once they may serve) and retired (`drain`, `withdraw`, `end`)
at any time; `cluster/scaling.py` does it. Names are never used twice.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.config import ClusterConfig
from cluster.events import Events, reason_of
from cluster.placement import Demand
from cluster.reservation import Reservation, reserve
from cluster.waiting import NO_LIMIT_S, Signal, together, wait_for
from cluster.workers import Worker, WorkerState

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONCURRENT_CALLS = 1000
"""Calls an asyncio actor serves at once; back-pressure comes from the controller's windows, not from this."""

PING_TIMEOUT_S = 60.0
"""A worker whose call failed must answer within this, or it is given up. Engine steps may block it for a while."""

SHUTDOWN_TIMEOUT_S = 10.0
"""So long a worker may take to stop by itself."""


@dataclass(frozen=True)
class WorkerSpec:
    """How one worker of a pool is built: a plain class and its arguments."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_async: bool = True


class Pool:
    """The workers of one role. `build(index)` says how worker `index` is made."""

    def __init__(
        self, demand: Demand, build: Callable[[int], WorkerSpec], *, config: ClusterConfig, events: Events
    ) -> None:
        self.role = demand.role
        self.demand = demand
        self._build = build
        self._config = config
        self._events = events
        self._num_made = 0
        self.workers: list[Worker] = []
        self.signal = Signal()
        """Told of every change of a worker's state; a pipeline puts its own in this place."""

    @property
    def healthy(self) -> list[Worker]:
        """Workers that work is given to."""
        return [worker for worker in self.workers if worker.is_healthy]

    @property
    def wanted(self) -> list[Worker]:
        """Workers that are given work, or will be: neither draining nor gone."""
        return [worker for worker in self.workers if worker.is_starting or worker.is_healthy]

    async def place(self) -> None:
        """Reserve resources and create the actors; TimeoutError saying what is waited for."""
        if self.demand.is_one_group:
            await self._create([self.add() for _ in range(self.demand.count)])
            return
        for _ in range(self.demand.count):
            await self._create([self.add()])  # one by one: close() frees what is placed

    async def start(self) -> None:
        """Let every worker load its engine, all at the same time."""
        await together(self._start(worker, "run start") for worker in self.workers)
        self.admit(*self.workers)

    def admit(self, *workers: Worker) -> None:
        """Let these started workers be given work."""
        for worker in workers:
            worker.become(WorkerState.HEALTHY)
        self.signal.changed()

    async def some_healthy(self) -> list[Worker]:
        """Wait for a worker that work can be given to, and return all of them."""
        return await self.signal.until(
            lambda: self.healthy, timeout_s=NO_LIMIT_S, what=lambda: f"a {self.role} worker that is starting"
        )

    async def call(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call `method` on every starting or healthy worker and return the results in worker order."""
        what = f"{self.role}.{method}"
        refs = [getattr(worker.handle, method).remote(*args) for worker in self.wanted]
        return await together(wait_for(ref, timeout_s=timeout_s, what=what) for ref in refs)

    @contextmanager
    def use(self, worker: Worker) -> Iterator[None]:
        """Count the worker as busy meanwhile: a draining one is not shut down before its limit."""
        worker.num_uses += 1
        try:
            yield
        finally:
            worker.num_uses -= 1
            if not worker.is_healthy:  # someone may wait for the end of what it has in flight
                self.signal.changed()

    # -- growing and shrinking --

    def add(self) -> Worker:
        """Enter one more worker, STARTING and under a new name; nothing is placed yet."""
        worker = Worker(f"{self.role}-{self._num_made}")
        self._num_made += 1
        self.workers.append(worker)
        self.signal.changed()
        return worker

    async def launch(self, worker: Worker, reason: str) -> None:
        """Place an added worker and start its engine; TimeoutError, or the RayError of its start.

        It still has to be admitted.
        """
        await self._create([worker])
        await self._start(worker, reason)

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

    async def examine(self, worker: Worker, error: BaseException) -> None:
        """After a failed call: mark the worker dead unless it answers a ping.

        The error alone does not tell: a call also fails with the death of the worker its arguments came from.
        """
        if worker.is_gone:
            return
        try:
            await wait_for(worker.handle.ping.remote(), timeout_s=PING_TIMEOUT_S, what=f"ping of {worker.name}")
        except (RayError, TimeoutError) as silence:
            self.mark_dead(worker, f"{reason_of(error)}; ping: {reason_of(silence)}")

    def mark_dead(self, worker: Worker, reason: str, *, event: str = "worker_died") -> None:
        """Kill the worker, free what it reserved, and give it nothing more.

        What it still works on fails at once, and so is repeated elsewhere. RuntimeError if the pool has no other
        that is healthy or starting.
        """
        if worker.is_gone:
            return
        worker.become(WorkerState.DEAD)
        self._free(worker)
        self._events.add(event, worker=worker.name, reason=reason)
        self.signal.changed()
        if not self.wanted:
            raise RuntimeError(f"no healthy {self.role} worker is left; {worker.name} died last: {reason}")

    async def close(self, *, gracefully: bool = True) -> None:
        """Ask every worker to stop, unless not `gracefully`; then kill it and free its resources."""
        await asyncio.gather(*(self._close(worker, gracefully) for worker in self.workers if worker.placement))
        self.workers = []

    async def _close(self, worker: Worker, gracefully: bool) -> None:
        await self._end(worker, gracefully)
        self._events.add("worker_retired", worker=worker.name, reason="run end")

    async def _create(self, workers: list[Worker]) -> None:
        """Place workers in one group (one worker, or all of a pool that is one group) and create their actors."""
        held = Counter(worker.node_id for worker in self.workers if worker.placement is not None)
        timeout_s = self._config.placement_timeout_s
        reservation = await reserve(self.demand, [worker.name for worker in workers], held, timeout_s)
        for index, worker in enumerate(workers):
            self._open(worker, reservation, index)

    def _open(self, worker: Worker, reservation: Reservation, index: int) -> None:
        """Create the worker's actor in one bundle of a placement group."""
        spec = self._build(int(worker.name.rpartition("-")[2]))
        bundle = dict(self.demand.bundle)
        num_gpus = bundle.pop("GPU", 0)
        options: dict[str, Any] = {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": 0
            if self.demand.further_stages
            else num_gpus,  # of a pipeline, vLLM's own actors take them
            "memory": int(bundle.pop("memory", 0)) or None,
            "resources": bundle or None,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=reservation.group, placement_group_bundle_index=index
            ),
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if spec.is_async:
            options["max_concurrency"] = CONCURRENT_CALLS
        worker.handle = ray.remote(spec.cls).options(**options).remote(*spec.args, **spec.kwargs)
        worker.placement = reservation.group
        worker.node_id, worker.node = reservation.nodes[index]

    async def _start(self, worker: Worker, reason: str) -> None:
        seconds: float = await wait_for(
            worker.handle.start.remote(), timeout_s=self._config.start_timeout_s, what=f"start of {worker.name}"
        )
        self._events.add(
            "worker_started", worker=worker.name, node=worker.node, reason=reason, seconds=round(seconds, 3)
        )

    async def _end(self, worker: Worker, gracefully: bool) -> None:
        try:
            if gracefully and worker.handle is not None and worker.state is not WorkerState.DEAD:
                what = f"shutdown of {worker.name}"
                await wait_for(worker.handle.shutdown.remote(), timeout_s=SHUTDOWN_TIMEOUT_S, what=what)
        except (RayError, TimeoutError) as error:
            logger.info("%s did not stop by itself: %s", worker.name, error)
        self._free(worker)

    def _free(self, worker: Worker) -> None:
        """Kill the actor, if there is one, and give back what it reserved: a shared group with its last one."""
        if worker.placement is not None:
            ray.kill(worker.handle)
            group, worker.placement = worker.placement, None
            if all(other.placement is not group for other in self.workers):
                remove_placement_group(group)


def named_actor(cls: type, *, name: str, args: tuple[Any, ...]) -> Any:
    """Start an asyncio actor on this node that others find by its name; it ends with this process.

    It reserves nothing. ValueError if the name is taken in this Ray namespace.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    options["max_concurrency"] = CONCURRENT_CALLS
    return ray.remote(cls).options(**options).remote(*args)


def on_every_node(function: Callable[..., T], *args: Any, timeout_s: float) -> dict[str, T]:
    """Call a function once on every node that is alive; results by node name, of those that answer in time."""
    refs: dict[str, Any] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        refs[node["NodeName"]] = ray.remote(function).options(**options).remote(*args)
    deadline, results = time.monotonic() + timeout_s, dict[str, T]()
    for name, ref in refs.items():
        try:
            results[name] = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
        except (RayError, TimeoutError) as error:
            logger.warning("node %s: %s", name, reason_of(error))
    return results
