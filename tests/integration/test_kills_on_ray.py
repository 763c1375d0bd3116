"""Real Ray actors with simulated engines are killed by SIGKILL, one after the other: nothing is lost."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from benchmarks.killer import Killer
from cluster.pool import Pool
from cluster.worker import Worker
from settings.run import RunConfig
from tests.simulated import EngineBehaviour
from tests.simulated_run import FaultyRun, eventually, run_config, simulated_run

NUM_KILLS = 60
"""Of each kind."""

pytestmark = [
    *(pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3600)),
    pytest.mark.usefixtures("local_ray"),
]

KINDS = ("rollout", "teacher", "learner")
ENGINE = EngineBehaviour(token_s=0.01)
HEALTH = {
    "heartbeat_s": 0.5,
    "suspect_after_s": 20.0,
    "dead_after_s": 60.0,
    "backoff_s": 0.1,
    "max_backoff_s": 1.0,
}


def kill_process(worker: Worker) -> None:
    """As `kill -9`."""
    os.kill(worker.pid, signal.SIGKILL)


class Sizes:
    """Memory of the driver, and what is taken of the object store, in MiB, at some steps."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.store: list[float] = []

    def note(self) -> None:
        """Measure now."""
        self.driver.append(round(psutil.Process().memory_info().rss / 2**20, 1))
        self.store.append(round(self.taken_mib(), 3))

    def taken_mib(self) -> float:
        """What objects take of the store of the local Ray; a second or so late."""
        total, free = ray.cluster_resources(), ray.available_resources()
        return (total["object_store_memory"] - free.get("object_store_memory", 0.0)) / 2**20

    async def check_that_it_sees_the_store(self) -> None:
        """A large object is seen, and so is its end."""
        held = [ray.put(np.zeros(20 * 2**20, np.uint8))]
        await eventually(lambda: self.taken_mib() > 19, timeout_s=60)
        held.clear()
        await eventually(lambda: self.taken_mib() < 1, timeout_s=60)


async def strike(run: FaultyRun, killer: Killer, sizes: Sizes) -> None:
    """Kill one worker after the other, each once the one before serves again and a step is done; end the run."""
    trained: list[Any] = []
    run.pipeline.on_step(trained.append)
    await sizes.check_that_it_sees_the_store()
    for index in range(NUM_KILLS * len(KINDS)):
        if index % NUM_KILLS == 0:
            sizes.note()
        killer.kill_within(0.5)
        await eventually(lambda num=index + 1: killer.num_back >= num, timeout_s=120)
        trained.clear()
        await eventually(lambda: trained, timeout_s=120)
    sizes.note()
    run.pipeline.stop()


def settings(path: Path) -> RunConfig:
    """A run that is long enough, and stopped after the last kill."""
    return run_config(
        path,
        max_steps=100_000,
        max_staleness=4,
        health=HEALTH,
        checkpoint={"every_steps": 2},
        cluster={"step_timeout_s": 60.0, "rollout_timeout_s": 120.0, "score_timeout_s": 60.0},
    )


def test_nothing_is_lost_in_60_kills_of_each_kind_and_memory_is_flat(tmp_path: Path) -> None:
    async def main() -> None:
        engines, teachers = (ENGINE,) * 3, (EngineBehaviour(),) * 2
        async with simulated_run(settings(tmp_path), engines=engines, teachers=teachers, pool_class=Pool) as run:
            kinds: dict[str, int] = dict.fromkeys(KINDS, 1)
            killer = Killer(run.pools, kill_process, kinds=kinds, seed=0, can_kill=lambda worker: worker.pid > 0)
            running, sizes = asyncio.create_task(run.pipeline.run()), Sizes()
            striking = asyncio.create_task(strike(run, killer, sizes))
            await asyncio.wait({running, striking}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(running, striking)
            await killer.close()
            check(run, killer, sizes)

    asyncio.run(main())


def check(run: FaultyRun, killer: Killer, sizes: Sizes) -> None:
    """Every slot that counts as trained is in the ledger once; nothing was given up, nothing grew."""
    numbers: dict[str, Any] = {"kills": killer.report(), "driver_mib": sizes.driver, "store_mib": sizes.store}
    print(json.dumps(numbers | {"steps": run.pipeline.slots.version}))
    frontier, trained = run.pipeline.slots.frontier(), sorted(run.trained_slots())
    assert trained == sorted([*range(frontier.lowest_untrained), *frontier.trained_above])
    assert killer.num_kills == dict.fromkeys(KINDS, NUM_KILLS)
    assert len(run.events("learner_restarted")) == NUM_KILLS
    staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
    assert 0 <= min(staleness) <= max(staleness) <= 4
    assert run.events("prompt_given_up") == run.events("worker_given_up") == []
    assert sizes.driver[-1] - sizes.driver[1] < 20
    assert max(sizes.store) < 5
