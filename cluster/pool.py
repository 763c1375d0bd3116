"""A pool of Ray actors of one role: placed, started, counted, closed. The only place that applies `ray.remote`."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import ClusterConfig
from cluster.events import Events, reason_of
from cluster.placement import Demand
from cluster.waiting import together, wait_for

logger = logging.getLogger(__name__)

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


@dataclass(eq=False)
class Worker:
    """One actor of a pool, as the controller sees it."""

    name: str
    handle: Any
    placement: PlacementGroup
    version: int = -1  # weight version it has confirmed; -1: none yet
    num_calls: int = 0
    outstanding_tokens: int = 0
    is_dead: bool = False


class Pool:
    """The workers of one role. `build(index)` says how worker `index` is made."""

    def __init__(
        self, demand: Demand, build: Callable[[int], WorkerSpec], *, config: ClusterConfig, events: Events
    ) -> None:
        self.role = demand.role
        self._demand = demand
        self._build = build
        self._config = config
        self._events = events
        self.workers: list[Worker] = []

    @property
    def healthy(self) -> list[Worker]:
        """Workers that work is given to."""
        return [worker for worker in self.workers if not worker.is_dead]

    async def place(self) -> None:
        """Reserve resources and create the actors; TimeoutError saying what is waited for."""
        for index in range(self._demand.count):
            self.workers.append(await self._create(index))  # one by one: close() frees what is placed

    async def start(self) -> None:
        """Let every worker load its engine, all at the same time."""
        await together(self._start(worker) for worker in self.workers)

    async def call(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call `method` on every healthy worker and return the results in worker order."""
        what = f"{self.role}.{method}"
        refs = [getattr(worker.handle, method).remote(*args) for worker in self.healthy]
        return await together(wait_for(ref, timeout_s=timeout_s, what=what) for ref in refs)

    async def examine(self, worker: Worker, error: BaseException) -> None:
        """After a failed call: mark the worker dead unless it answers a ping.

        The error alone does not tell: a call also fails with the death of the worker its arguments came from.
        """
        if worker.is_dead:
            return
        try:
            await wait_for(worker.handle.ping.remote(), timeout_s=PING_TIMEOUT_S, what=f"ping of {worker.name}")
        except (RayError, TimeoutError) as silence:
            self.mark_dead(worker, f"{reason_of(error)}; ping: {reason_of(silence)}")

    def mark_dead(self, worker: Worker, reason: str) -> None:
        """Kill the worker and give it nothing more; RuntimeError if it was the last of its pool.

        What it still works on fails at once, and so is repeated elsewhere.
        """
        if worker.is_dead:
            return
        worker.is_dead = True
        ray.kill(worker.handle)
        self._events.add("worker_died", worker=worker.name, reason=reason)
        if not self.healthy:
            raise RuntimeError(f"no healthy {self.role} worker is left; {worker.name} died last: {reason}")

    async def close(self, *, gracefully: bool = True) -> None:
        """Ask every worker to stop, unless not `gracefully`; then kill it and free its resources."""
        await asyncio.gather(*(self._retire(worker, gracefully) for worker in self.workers))
        self.workers = []

    async def _create(self, index: int) -> Worker:
        spec = self._build(index)
        name = f"{self.role}-{index}"
        group = placement_group([self._demand.bundle], strategy="PACK")
        what = f"placement of {name} ({self._demand})"
        try:
            await wait_for(group.ready(), timeout_s=self._config.placement_timeout_s, what=what)
        except BaseException:
            remove_placement_group(group)
            raise
        bundle = dict(self._demand.bundle)
        options = {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "resources": bundle or None,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=group),
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if spec.is_async:
            options["max_concurrency"] = CONCURRENT_CALLS
        handle = ray.remote(spec.cls).options(**options).remote(*spec.args, **spec.kwargs)
        return Worker(name, handle, group)

    async def _start(self, worker: Worker) -> None:
        seconds: float = await wait_for(
            worker.handle.start.remote(), timeout_s=self._config.start_timeout_s, what=f"start of {worker.name}"
        )
        self._events.add("worker_started", worker=worker.name, reason="run start", seconds=round(seconds, 3))

    async def _retire(self, worker: Worker, gracefully: bool) -> None:
        try:
            if gracefully and not worker.is_dead:
                what = f"shutdown of {worker.name}"
                await wait_for(worker.handle.shutdown.remote(), timeout_s=SHUTDOWN_TIMEOUT_S, what=what)
        except (RayError, TimeoutError) as error:
            logger.info("%s did not stop by itself: %s", worker.name, error)
        ray.kill(worker.handle)
        remove_placement_group(worker.placement)
        self._events.add("worker_retired", worker=worker.name, reason="run end")
