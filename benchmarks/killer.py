"""Kills workers of a live run, at random moments, and notes how long each takes to serve again.

    killer = Killer(run.pools, lambda worker: worker.handle.kill(), kinds={"rollout": 12, "learner": 1}, seed=0)
    run.pipeline.on_step(killer.after_every(500, batch_size=100))
    await run.pipeline.run()
    await killer.close()

The pools are not told: they have to find out. Times are those of the event loop, real or simulated.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

from cluster.pool import Pool
from cluster.waiting import NO_LIMIT_S, now
from cluster.worker import Worker

logger = logging.getLogger(__name__)

AGAIN_AFTER_S = 0.1
"""While no worker of a kind lives, a kill waits so long before it looks again."""


class Killer:
    """Ends random workers, of each kind in proportion."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        kill: Callable[[Worker], object],
        *,
        kinds: Mapping[str, int],
        seed: int,
        can_kill: Callable[[Worker], bool] = lambda worker: True,
    ) -> None:
        """`kinds`: how many of each pool's workers are killed out of every sum of them, in random order.

        `can_kill` tells the workers that `kill` would reach.
        """
        self._pools = pools
        self._kill = kill
        self._can_kill = can_kill
        self._random = random.Random(seed)
        self._deck = self._deal(kinds)
        self._killed: dict[Worker, int] = {}  # the life in which each was killed last
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_kills = dict.fromkeys(kinds, 0)
        self.recoveries_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        """Of every kill, seconds until the worker served again, however often it was killed meanwhile."""

    def after_every(self, num_slots: int, *, batch_size: int) -> Callable[[Mapping[str, Any]], None]:
        """A listener to the steps of a pipeline that kills a worker for every so many slots trained.

        The kill comes at a random moment within a time as long as the last step. Slots trained again count too.
        """
        trained = due = 0

        def note(row: Mapping[str, Any]) -> None:
            nonlocal trained, due
            trained += batch_size
            while due + num_slots <= trained:
                due += num_slots
                self.kill_within(row["time/step_s"])

        return note

    def kill_within(self, seconds: float) -> None:
        """Kill one more worker at a random moment of the next seconds."""
        task = asyncio.create_task(self._strike(next(self._deck), self._random.uniform(0.0, seconds)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def num_back(self) -> int:
        """Kills after which the worker was seen to serve again."""
        return sum(map(len, self.recoveries_s.values()))

    async def close(self) -> None:
        """Kill no more, and wait for nobody to come back; raises what went wrong."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def report(self) -> dict[str, Any]:
        """By kind: kills, those that were not seen to serve again, median and worst seconds until they did."""
        return {
            kind: {
                "kills": num,
                "not_seen_back": num - len(times := self.recoveries_s[kind]),
                "median_s": round(median(times), 3) if times else None,
                "worst_s": round(max(times), 3) if times else None,
            }
            for kind, num in self.num_kills.items()
        }

    def _deal(self, kinds: Mapping[str, int]) -> Iterator[str]:
        while True:
            deck = [kind for kind, num in kinds.items() for _ in range(num)]
            self._random.shuffle(deck)
            yield from deck

    async def _strike(self, kind: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while not (alive := [w for w in self._pools[kind].workers if self._is_alive(w)]):
            await asyncio.sleep(AGAIN_AFTER_S)
        worker = self._random.choice(alive)
        life, died_at = worker.num_lives, now()
        logger.info("killing %s in its life %d, %s", worker.name, life, worker.state)
        self._killed[worker] = life
        self._kill(worker)
        self.num_kills[kind] += 1
        await self._pools[kind].signal.until(
            lambda: worker.is_healthy and worker.num_lives > life,
            timeout_s=NO_LIMIT_S,
            what=lambda: f"the return of {worker.name}",
        )
        self.recoveries_s[kind].append(now() - died_at)

    def _is_alive(self, worker: Worker) -> bool:
        """True while it has an actor that was not killed yet, serving or not."""
        has_actor = worker.placement is not None and self._can_kill(worker)
        return has_actor and self._killed.get(worker, 0) < worker.num_lives
