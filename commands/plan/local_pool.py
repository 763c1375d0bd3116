"""A pool whose workers live in this process: no Ray, no placement. For simulations and load tests."""

import asyncio

from cluster.pool import Pool
from cluster.worker import Worker
from commands.plan.local_actors import LocalActor

IN_PROCESS = "in process"
"""Placement of a local worker."""


class LocalPool(Pool):
    """A `Pool` that makes its workers here."""

    async def _create(self, workers: list[Worker], turn: asyncio.Lock | None = None) -> None:
        for worker in workers:
            spec = self._build(int(worker.name.rpartition("-")[2]))
            worker.handle = LocalActor(spec.cls(*spec.args, **spec.kwargs))
            worker.num_lives += 1
            worker.placement = worker.node_id = worker.node = IN_PROCESS

    def _free(self, worker: Worker) -> None:
        if worker.placement is not None:
            worker.handle.kill()
            worker.placement = None
