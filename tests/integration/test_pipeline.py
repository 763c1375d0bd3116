"""What only real Ray can show of a run: processes that die and freeze, streams that are cut off, placement."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import OwnerDiedError
from ray.util.placement_group import placement_group_table

from cluster.placement import Demand
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from controller.lanes import Rollout
from records.events import Events
from records.files import read_rows
from settings.cluster import ClusterConfig
from tests.simulated import EngineBehaviour, FaultyLearner, LearnerBehaviour
from tests.simulated_run import FaultyRun, eventually, freeze, kill, other_tasks, run_config, simulated_run

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("local_ray")]

ENGINE = EngineBehaviour(token_s=0.01)
HEALTH = {"heartbeat_s": 0.2, "suspect_after_s": 2.0, "dead_after_s": 8.0, "backoff_s": 0.1}
"""Short limits; shorter ones take a busy machine for a dead one."""
STEPS, BATCH, STALENESS = 6, 8, 3


def run_on_ray(
    path: Path, scenario: Callable[[FaultyRun], Awaitable[None]], *, settings: Any = None, **given: Any
) -> None:
    """Carry out a scenario on a run of six steps, whose workers are Ray actors."""

    async def main() -> None:
        sizes = {"max_steps": STEPS, "max_staleness": STALENESS, "health": HEALTH}
        config = run_config(path, **sizes | (settings or {}))
        behaviours: dict[str, Any] = {"engines": (ENGINE,)} | given
        async with simulated_run(config, pool_class=Pool, **behaviours) as run:
            await scenario(run)

    asyncio.run(main())


def check_ledger(run: FaultyRun, *, steps: int = STEPS) -> None:
    """Every slot counts as trained once, and none on rollouts that were too old."""
    assert sorted(run.trained_slots()) == list(range(steps * BATCH))
    staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
    assert 0 <= min(staleness) <= max(staleness) <= STALENESS
    assert run.events("prompt_given_up") == []


def num_groups() -> int:
    """Placement groups that are not removed."""
    table: dict[str, dict[str, Any]] = placement_group_table()
    return sum(group["state"] != "REMOVED" for group in table.values())


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_a_worker_whose_process_is_killed_is_restarted_and_what_it_had_is_done_elsewhere(
    tmp_path: Path, role: str
) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        worker, other = run.pools[role].workers
        await eventually(lambda: run.pipeline.slots.version >= 1 and (worker.num_slots or worker.num_calls))
        kill(worker)
        await asyncio.wait_for(running, 300)
        check_ledger(run)
        assert [event["worker"] for event in run.events("worker_died")] == [worker.name]
        assert other.num_lives == 1

    slow = EngineBehaviour(token_s=0.03, score_s=0.1)
    run_on_ray(tmp_path, scenario, engines=(slow, slow), teachers=(slow, slow))


def test_a_process_that_ends_between_a_note_and_its_table_costs_no_teacher_and_no_slot(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        await run.pipeline.run()
        check_ledger(run)
        died = {event["worker"] for event in run.events("worker_died")}  # each time it is back
        assert died == {"rollout-0"}

    run_on_ray(tmp_path, scenario, engines=(replace(ENGINE, dies_after_note=True), ENGINE))


def test_a_process_that_is_stopped_is_found_by_its_silence_and_replaced(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        freeze(run.rollout.workers[0])
        frozen_at = time.time()
        await asyncio.wait_for(running, 300)
        check_ledger(run)
        [died] = run.events("worker_died")
        assert died["reason"] == "no answer to heartbeats for 8 s"
        assert died["time"] - frozen_at < 8 + 10 * 0.2 + 5  # a busy machine answers late

    run_on_ray(tmp_path, scenario)


def test_while_the_head_is_away_what_lives_goes_on(tmp_path: Path) -> None:
    [head] = [each for each in psutil.Process().children(recursive=True) if each.name() == "gcs_server"]

    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version >= 2)
        worker, other = run.rollout.workers
        head.suspend()
        try:
            kill(worker)
            began, slowest_s = run.pipeline.slots.version, 0.0
            while run.pipeline.slots.version < began + 10:
                tick = time.monotonic()
                await asyncio.sleep(0.05)
                slowest_s = max(slowest_s, time.monotonic() - tick)
                assert not running.done()
                assert tick - started < 60
            assert slowest_s < 2, "nothing may hold up the event loop"
        finally:
            head.resume()
        await eventually(lambda: worker.num_lives == 2 and worker.is_healthy, timeout_s=90)
        run.pipeline.stop()
        await asyncio.wait_for(running, 60)
        assert [event["worker"] for event in run.events("worker_died")] == [worker.name]
        assert other.num_lives == 1

    started = time.monotonic()
    run_on_ray(tmp_path, scenario, engines=(ENGINE, ENGINE), settings={"max_steps": 10000})


def test_a_learner_whose_process_is_killed_is_restarted_from_the_last_checkpoint(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 3)
        first, second = run.pools["learner"].workers
        os.kill(second.pid, signal.SIGSTOP)  # it owes an answer when it is ended with the first
        kill(first)
        await asyncio.wait_for(running, 300)
        check_ledger(run)
        ends = [*run.events("worker_died"), *run.events("worker_ended")]  # found dead, or ended by the restart
        assert sorted(event["worker"] for event in ends) == ["learner-0", "learner-1"]
        assert len(run.events("learner_restarted")) == 1
        assert {event["incarnation"] for event in run.events("weights_loaded")} == {0, 1}

    settings = {"learner": {"num_workers": 2}, "checkpoint": {"every_steps": 1}}
    run_on_ray(tmp_path, scenario, learner=LearnerBehaviour(train_s=0.3), settings=settings)


class Owner:
    """Puts a value of its own into the object store: it is lost when this actor dies."""

    def put(self) -> list[Any]:
        return [ray.put(np.zeros(1_000_000))]


def lost_reference() -> Any:
    """A reference of a value that does not exist any more."""
    actor: Any = ray.remote(Owner).options(num_cpus=0).remote()
    [reference] = ray.get(actor.put.remote(), timeout=30)
    ray.kill(actor)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=5)
        except OwnerDiedError:
            return reference
        time.sleep(0.1)
    raise TimeoutError("the value of a dead owner is still there")


def test_slots_whose_tables_are_lost_with_their_owner_are_generated_anew(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        reference = await asyncio.to_thread(lost_reference)
        take, lost = run.pipeline._scoring.take, list[int]()

        def take_some_lost(slots: list[int]) -> list[Rollout]:
            batch = take(slots)
            if run.pipeline.slots.version != 2 or lost:
                return batch
            lost.extend(slots[:2])
            return [replace(each, table=reference) if each.note.slot in lost else each for each in batch]

        run.pipeline._scoring.take = take_some_lost
        await asyncio.wait_for(run.pipeline.run(), 300)
        check_ledger(run)
        [event] = run.events("tables_lost")
        assert event["slots"] == lost
        assert run.events("learner_lost") == []

    run_on_ray(tmp_path, scenario)


def test_a_stop_aborts_the_generations_in_flight_and_leaves_nothing_running(tmp_path: Path) -> None:
    aborts = tmp_path / "aborts.jsonl"

    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 1)
        run.pipeline.stop()
        await asyncio.wait_for(running, 60)
        await eventually(lambda: not other_tasks(), timeout_s=30)
        await eventually(lambda: read_rows(aborts), timeout_s=30)

    settings = {"max_staleness": 40, "batches_ahead": 10, "max_steps": 50}
    run_on_ray(tmp_path, scenario, engines=(EngineBehaviour(token_s=0.5, aborts=aborts),), settings=settings)


def test_workers_are_placed_and_their_place_is_freed_while_a_run_grows_and_shrinks(tmp_path: Path) -> None:
    before = num_groups()

    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version >= 1)
        demand = run.teacher.demand
        run.teacher.demand = Demand("teacher", 1, {"CPU": 15.99})
        run.pipeline.scaling.resize("teacher", 2, "test")
        run.pipeline.scaling.resize("rollout", 3, "test")
        await eventually(lambda: run.events("worker_not_started"), timeout_s=60)
        reason = run.events("worker_not_started")[0]["reason"]
        assert "placement of teacher-1 (teacher: 1 x (15.99 CPU)); 15.99 CPU wanted, " in reason
        run.teacher.demand = demand
        await eventually(lambda: len(run.rollout.healthy) == 3, timeout_s=60)
        run.pipeline.scaling.resize("rollout", 1, "test")
        run.pipeline.scaling.resize("teacher", 1, "test")
        await eventually(lambda: num_groups() == before + 3, timeout_s=60)  # learner and one of each
        run.pipeline.stop()
        await asyncio.wait_for(running, 60)
        assert len(set(run.trained_slots())) == len(run.trained_slots()) == BATCH * run.pipeline.slots.version

    settings = {"max_steps": 100_000, "cluster": {"placement_timeout_s": 1.0}}
    run_on_ray(tmp_path, scenario, settings=settings)
    assert num_groups() == before


def test_a_pool_that_cannot_be_placed_frees_what_it_had_placed(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = num_groups()
        demand = Demand("learner", 3, {"CPU": 7.0})  # of 16: two workers fit
        spec = WorkerSpec(FaultyLearner, (LearnerBehaviour(), tmp_path / "calls.jsonl"))
        config = ClusterConfig(placement_timeout_s=5.0)
        pool = Pool(demand, lambda index: spec, config=config, events=Events())
        with pytest.raises(TimeoutError, match=r"placement of learner-2 \(learner: 3 x \(7 CPU\)\)"):
            await pool.place()
        await pool.close()
        await eventually(lambda: num_groups() == before, timeout_s=30)

    asyncio.run(scenario())
