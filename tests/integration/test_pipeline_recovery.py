"""Every kind of worker may die, freeze or break at any moment: real actors on real Ray, simulated engines."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import OwnerDiedError

from cluster.worker import Worker
from controller.lanes import Rollout
from controller.learner_group import LearnerLostError
from tests.integration.simulated import EngineBehaviour, LearnerBehaviour
from tests.integration.simulated_run import SimulatedRun, eventually, other_tasks, run_config, simulated_run

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("local_ray")]

ENGINE = EngineBehaviour(fastest_s=0.01, slowest_s=0.1)
SPEED: dict[str, Any] = {"max_steps": 6, "max_staleness": 3}
HEALTH = {"heartbeat_s": 0.2, "suspect_after_s": 2.0, "dead_after_s": 8.0, "backoff_s": 0.1}
"""Short limits; shorter ones take a busy machine for a dead one."""
ALL_SLOTS = list(range(6 * 8))


def run_with(
    tmp_path: Path, scenario: Callable[[SimulatedRun], Awaitable[None]], *, health: Any = HEALTH, **given: Any
) -> None:
    """Carry out a scenario on a run of six steps; `settings` among what is given are those of the run."""

    async def main() -> None:
        config = run_config(tmp_path, **(SPEED | {"health": health} | given.pop("settings", {})))
        behaviours: dict[str, Any] = {"engines": (ENGINE,)} | given
        async with simulated_run(config, **behaviours) as run:
            await scenario(run)

    asyncio.run(main())


def check_ledger(run: SimulatedRun) -> None:
    """Every slot counts as trained once, and none on rollouts that were too old."""
    assert sorted(run.trained_slots()) == ALL_SLOTS
    staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
    assert 0 <= min(staleness) <= max(staleness) <= 3


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_the_only_worker_of_a_pool_is_restarted_when_it_dies(tmp_path: Path, role: str) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        [worker] = run.pools[role].workers
        os.kill(worker.pid, signal.SIGKILL)
        await asyncio.wait_for(running, 90)
        check_ledger(run)
        assert [event["worker"] for event in run.events("worker_died")] == [worker.name]
        [restarted] = run.events("worker_restarted")
        assert (restarted["worker"], restarted["life"]) == (worker.name, 2)
        assert run.events("prompt_given_up") == []

    run_with(tmp_path, scenario)


def test_a_restarted_student_engine_serves_only_the_current_weights(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 3)
        ray.kill(run.rollout.workers[0].handle)
        await asyncio.wait_for(running, 90)
        check_ledger(run)
        restarted_at = run.events("worker_started")[-1]["time"]
        loads = [event for event in run.events("weights_loaded") if event["time"] >= restarted_at]
        assert loads[0]["version"] >= 3

    run_with(tmp_path, scenario)


def test_a_worker_that_cannot_be_brought_back_is_given_up_and_the_run_ends_with_the_last(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        error = await asyncio.wait_for(run.failure(), 90)
        assert isinstance(error, RuntimeError)
        assert str(error) == (
            "no rollout worker is left; rollout-0 was given up last: 2 restarts in a row and no request served"
        )
        assert [event["worker"] for event in run.events("worker_died")] == ["rollout-0"] * 3
        assert "the engine cannot load" in run.events("worker_died")[-1]["reason"]
        await eventually(lambda: not other_tasks(), timeout_s=5)

    broken = EngineBehaviour(failing_loads=1000)
    run_with(tmp_path, scenario, engines=(broken,), health=HEALTH | {"max_restarts": 2})


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_a_frozen_worker_is_found_within_the_configured_time_and_replaced(tmp_path: Path, role: str) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        os.kill(run.pools[role].workers[0].pid, signal.SIGSTOP)
        frozen_at = time.time()
        await asyncio.wait_for(running, 90)
        check_ledger(run)
        [died] = run.events("worker_died")
        assert died["reason"] == "no answer to heartbeats for 8 s"
        assert died["time"] - frozen_at < 8 + 10 * 0.2 + 5  # a busy machine answers late

    run_with(tmp_path, scenario)


def test_a_worker_that_is_silent_for_a_while_is_given_nothing_until_it_is_heard_again(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 1)
        worker = run.rollout.workers[1]
        os.kill(worker.pid, signal.SIGSTOP)
        await eventually(lambda: run.events("worker_suspect"))
        issued = len(run.prompts.issued)
        assert not worker.is_healthy
        await asyncio.sleep(0.5)
        os.kill(worker.pid, signal.SIGCONT)
        await eventually(lambda: run.events("worker_heard"))
        await asyncio.wait_for(running, 90)
        check_ledger(run)
        assert run.events("worker_died") == []
        assert len(run.prompts.issued) == len(ALL_SLOTS) >= issued

    run_with(tmp_path, scenario, engines=(ENGINE, ENGINE), health=HEALTH | {"dead_after_s": 60.0})


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_an_engine_that_answers_and_makes_no_token_is_found_and_replaced(tmp_path: Path, role: str) -> None:
    async def scenario(run: SimulatedRun) -> None:
        await asyncio.wait_for(run.pipeline.run(), 90)
        check_ledger(run)
        [died] = run.events("worker_died")
        assert died["worker"] == f"{role}-0"
        assert died["reason"] == "its engine has work and made no token for 1.5 s"

    wedged = EngineBehaviour(0.01, 0.1, is_wedged=True, first_life=tmp_path / "first")
    given: dict[str, Any] = {"engines": (wedged,)} if role == "rollout" else {"teachers": (wedged,)}
    run_with(tmp_path, scenario, health=HEALTH | {"stall_after_s": 1.5}, **given)


@pytest.mark.parametrize("stage", ["kills", "kills_scoring"])
def test_a_prompt_that_kills_engines_is_set_aside_and_no_other_is(tmp_path: Path, stage: str) -> None:
    async def scenario(run: SimulatedRun) -> None:
        await asyncio.wait_for(run.pipeline.run(), 170)
        assert sorted(run.trained_slots()) == ALL_SLOTS
        [given_up] = run.events("prompt_given_up")
        assert (given_up["slot"], given_up["prompt_id"], given_up["reason"]) == (13, "p13", "poison")
        deaths = [event["doing"] for event in run.events("worker_died")]
        no_proof = deaths.count({"generate": 1, "load weights": 1})  # alone, but for a load of weights
        assert 2 <= len(deaths) - no_proof <= 4, deaths
        assert no_proof <= 4, deaths

    behaviour: dict[str, Any] = {"fastest_s": 0.01, "slowest_s": 0.1, stage: frozenset({13})}
    poisoned = EngineBehaviour(**behaviour)
    engines = (poisoned, poisoned) if stage == "kills" else (ENGINE,)
    teachers = (poisoned, poisoned) if stage == "kills_scoring" else (EngineBehaviour(),)
    limits = {"cluster": {"step_timeout_s": 60.0}}  # four restarts in a row on a busy machine
    run_with(tmp_path, scenario, engines=engines, teachers=teachers, settings=limits)


def test_a_teacher_that_disagrees_with_its_replicas_is_not_admitted(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        run.pipeline.scaling.resize("teacher", 2, "test")
        await eventually(lambda: run.events("worker_given_up"), timeout_s=60)
        [given_up] = run.events("worker_given_up")
        assert given_up["worker"] == "teacher-1"
        not_started = run.events("worker_not_started")
        assert len(not_started) == 2
        assert all("teacher-1 does not agree with its replicas" in event["reason"] for event in not_started)
        assert [worker.name for worker in run.teacher.healthy] == ["teacher-0"]
        run.pipeline.stop()
        await asyncio.wait_for(running, 60)
        assert len(set(run.trained_slots())) == len(run.trained_slots()) > 0

    wrong, health = {"teacher": EngineBehaviour(answer=0.5)}, HEALTH | {"max_restarts": 1}
    run_with(tmp_path, scenario, added=wrong, health=health, settings={"max_steps": 100_000})


@pytest.mark.parametrize("max_staleness", [0, 3])
@pytest.mark.parametrize("fault", ["dies_at", "freezes_at"])
def test_a_lost_learner_is_restarted_from_the_last_checkpoint(
    tmp_path: Path, fault: str, max_staleness: int
) -> None:
    async def scenario(run: SimulatedRun) -> None:
        await asyncio.wait_for(run.pipeline.run(), 120)
        check_ledger(run)
        [lost] = run.events("learner_lost")
        assert lost["step"] == 5
        [restarted] = run.events("learner_restarted")
        assert (restarted["step"], restarted["lost_at"]) == (4, 5)
        assert '{"rollback_to": 4}' in run.folder.ledger.read_text()
        assert [call["step"] for call in run.calls("train_step")] == [0, 1, 2, 3, 4, 4, 5]
        rows = run.folder.metric_rows()
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6]
        assert [row["wasted/fall_back"] >= rows[4]["tokens_trained"] for row in rows] == [False] * 5 + [True] * 2
        assert {event["incarnation"] for event in run.events("weights_loaded")} == {0, 1}
        assert run.events("worker_given_up") == run.events("prompt_given_up") == []

    run_with(
        tmp_path,
        scenario,
        learner=replace(LearnerBehaviour(num_faults=1), **{fault: 5}),
        settings={
            "max_staleness": max_staleness,
            "checkpoint": {"every_steps": 2},
            "cluster": {"step_timeout_s": 3.0},
        },
    )


def test_a_frozen_learner_rank_is_found_by_its_silence(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 3)
        ranks: list[Worker] = run.pools["learner"].workers
        os.kill(ranks[1].pid, signal.SIGSTOP)
        await asyncio.wait_for(running, 120)
        check_ledger(run)
        died = run.events("worker_died")
        assert [(e["worker"], e["reason"]) for e in died] == [("learner-1", "no answer to heartbeats for 8 s")]
        assert [event["worker"] for event in run.events("worker_ended")] == ["learner-0"]
        assert len(run.events("learner_restarted")) == 1

    run_with(tmp_path, scenario, settings={"learner": {"num_workers": 2}, "checkpoint": {"every_steps": 1}})


def test_a_learner_that_dies_while_it_waits_for_a_batch_is_brought_back_meanwhile(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        await asyncio.sleep(0.5)  # the step is published by now
        os.kill(run.pools["learner"].workers[0].pid, signal.SIGKILL)
        await eventually(lambda: run.events("learner_lost"), timeout_s=5)
        assert run.events("learner_lost")[0]["reason"] == "between two steps: learner-0 is dead"
        await asyncio.wait_for(running, 120)
        check_ledger(run)

    slow = EngineBehaviour(fastest_s=3.0, slowest_s=3.0)
    settings = {"checkpoint": {"every_steps": 1}, "max_staleness": 0, "max_steps": 6}
    run_with(tmp_path, scenario, engines=(slow,), settings=settings)


def test_a_rank_that_is_ended_with_a_lost_learner_may_owe_an_answer(tmp_path: Path) -> None:
    """Its heartbeat fails with its end, and that is no news of its next life."""

    async def scenario(run: SimulatedRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        await asyncio.sleep(0.5)  # the step is published by now
        first, second = (worker.pid for worker in run.pools["learner"].workers)
        os.kill(second, signal.SIGSTOP)
        await asyncio.sleep(0.6)  # three heartbeats, well below what counts as dead; there is no batch yet
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(running, 90)
        check_ledger(run)
        assert [event["worker"] for event in run.events("worker_died")] == ["learner-0"]
        assert [event["worker"] for event in run.events("worker_ended")] == ["learner-1"]

    slow = EngineBehaviour(fastest_s=3.0, slowest_s=3.0)
    settings = {"learner": {"num_workers": 2}, "checkpoint": {"every_steps": 1}, "max_staleness": 0}
    run_with(tmp_path, scenario, engines=(slow,), settings=settings)


def test_a_learner_that_is_lost_again_and_again_without_a_new_step_ends_the_run(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        error = await asyncio.wait_for(run.failure(), 120)
        assert isinstance(error, LearnerLostError)
        assert "training step 2" in str(error)
        assert [event["restart"] for event in run.events("learner_lost")] == [1, 2]
        await eventually(lambda: not other_tasks(), timeout_s=5)

    health = HEALTH | {"max_learner_restarts": 1}
    run_with(tmp_path, scenario, learner=LearnerBehaviour(dies_at=2), health=health)


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


def test_slots_whose_scored_tables_are_lost_are_generated_anew_and_the_learner_goes_on(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        reference = await asyncio.to_thread(lost_reference)
        take, lost = run.pipeline._scoring.take, list[int]()

        def take_some_lost(slots: list[int]) -> list[Rollout]:
            batch = take(slots)
            if run.pipeline.slots.version != 2 or lost:
                return batch
            lost.extend(slots[:2])
            return [replace(each, table=reference) if each.note.slot in lost else each for each in batch]

        run.pipeline._scoring.take = take_some_lost
        await asyncio.wait_for(run.pipeline.run(), 90)
        check_ledger(run)
        [event] = run.events("tables_lost")
        assert event["slots"] == lost
        assert [run.prompts.attempts[slot] for slot in lost] == [[0, 1], [0, 1]]
        calls = run.calls("train_step")
        pairs = [pair for call in calls for pair in zip(call["slots"], call["lengths"], strict=True)]
        row = run.folder.metric_rows()[-1]
        assert row["wasted/lost"] == sum(length for slot, length in pairs if slot in lost)
        assert row["wasted/given_up"] == row["wasted/fall_back"] == row["wasted/cut_off"] == 0
        assert run.events("learner_lost") == run.events("prompt_given_up") == []

    run_with(tmp_path, scenario)


def test_three_steps_in_a_row_without_a_finite_gradient_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    async def scenario(run: SimulatedRun) -> None:
        error = await asyncio.wait_for(run.failure(), 60)
        assert isinstance(error, RuntimeError)
        assert "3 steps in a row had no finite gradient" in str(error)
        assert [row["skipped"] for row in run.folder.valid_metrics()] == [0, 0, 1, 1, 1]
        tokens = [row["tokens_trained"] for row in run.folder.valid_metrics()]
        assert run.folder.valid_metrics()[-1]["wasted/skipped"] == sum(tokens[2:]) > 0
        assert (run.folder.checkpoints / "step_5").is_dir()
        rows = run.folder.ledger.read_text().splitlines()
        assert ['"skipped": true' in row for row in rows] == [False, False, True, True, True]

    run_with(tmp_path, scenario, learner=LearnerBehaviour(skips_from=2))
