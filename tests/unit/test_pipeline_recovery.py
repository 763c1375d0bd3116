"""Every kind of worker may die, freeze or break at any moment: simulated engines in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ObjectLostError

from cluster.waiting import now
from cluster.worker import Worker
from commands.plan.local_pool import LocalRef
from commands.plan.run import run_virtually
from controller.lanes import Rollout
from controller.learner_group import LearnerLostError
from records.files import read_rows
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import FaultyRun, eventually, freeze, kill, other_tasks, run_config, simulated_run

pytestmark = pytest.mark.timeout(60)

ENGINE = EngineBehaviour(token_s=0.0053)
SPEED: dict[str, Any] = {"max_steps": 6, "max_staleness": 3}
HEALTH = {"heartbeat_s": 0.2, "suspect_after_s": 2.0, "dead_after_s": 8.0, "backoff_s": 0.1}
"""Short limits; shorter ones take a busy machine for a dead one."""
ALL_SLOTS = list(range(6 * 8))


def run_with(
    tmp_path: Path, scenario: Callable[[FaultyRun], Awaitable[None]], *, health: Any = HEALTH, **given: Any
) -> None:
    """Carry out a scenario on a run of six steps; `settings` among what is given are those of the run."""

    async def main() -> None:
        config = run_config(tmp_path, **(SPEED | {"health": health} | given.pop("settings", {})))
        behaviours: dict[str, Any] = {"engines": (ENGINE,)} | given
        async with simulated_run(config, **behaviours) as run:
            await scenario(run)

    run_virtually(main())


def check_ledger(run: FaultyRun) -> None:
    """Every slot counts as trained once, and none on rollouts that were too old."""
    assert sorted(run.trained_slots()) == ALL_SLOTS
    staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
    assert 0 <= min(staleness) <= max(staleness) <= 3


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_the_only_worker_of_a_pool_is_restarted_when_it_dies(tmp_path: Path, role: str) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        [worker] = run.pools[role].workers
        kill(worker)
        await running
        check_ledger(run)
        assert [event["worker"] for event in run.events("worker_died")] == [worker.name]
        [restarted] = run.events("worker_restarted")
        assert (restarted["worker"], restarted["life"]) == (worker.name, 2)
        assert run.events("prompt_given_up") == []

    run_with(tmp_path, scenario)


def test_a_restarted_student_engine_serves_only_the_current_weights(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 3)
        kill(run.rollout.workers[0])
        await running
        check_ledger(run)
        rows = read_rows(run.folder.events)
        restarted = max(index for index, row in enumerate(rows) if row["event"] == "worker_started")
        loads = [row["version"] for row in rows[restarted:] if row["event"] == "weights_loaded"]
        assert loads[0] >= 3

    run_with(tmp_path, scenario)


def test_a_worker_that_cannot_be_brought_back_is_given_up_and_the_run_ends_with_the_last(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        error = await run.failure()
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
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        freeze(run.pools[role].workers[0])
        frozen_at = now()
        await eventually(lambda: run.events("worker_died"))
        assert 8 - 0.2 <= now() - frozen_at <= 8 + 2 * 0.2
        await running
        check_ledger(run)
        [died] = run.events("worker_died")
        assert died["reason"] == "no answer to heartbeats for 8 s"

    run_with(tmp_path, scenario)


def test_a_worker_that_is_silent_for_a_while_is_given_nothing_until_it_is_heard_again(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 1)
        worker = run.rollout.workers[1]
        freeze(worker)
        await eventually(lambda: run.events("worker_suspect"))
        issued = len(run.prompts.issued)
        assert not worker.is_healthy
        await asyncio.sleep(0.5)
        worker.handle.thaw()
        await eventually(lambda: run.events("worker_heard"))
        await running
        check_ledger(run)
        assert run.events("worker_died") == []
        assert len(run.prompts.issued) == len(ALL_SLOTS) >= issued

    run_with(tmp_path, scenario, engines=(ENGINE, ENGINE), health=HEALTH | {"dead_after_s": 60.0})


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_an_engine_that_answers_and_makes_no_token_is_found_and_replaced(tmp_path: Path, role: str) -> None:
    async def scenario(run: FaultyRun) -> None:
        await run.pipeline.run()
        check_ledger(run)
        [died] = run.events("worker_died")
        assert died["worker"] == f"{role}-0"
        assert died["reason"] == "its engine has work and made no token for 1.5 s"

    wedged = EngineBehaviour(0.005, is_wedged=True, first_life=tmp_path / "first")
    given: dict[str, Any] = {"engines": (wedged,)} if role == "rollout" else {"teachers": (wedged,)}
    run_with(tmp_path, scenario, health=HEALTH | {"stall_after_s": 1.5}, **given)


@pytest.mark.parametrize("stage", ["kills", "kills_scoring"])
def test_a_prompt_that_kills_engines_is_set_aside_and_no_other_is(tmp_path: Path, stage: str) -> None:
    async def scenario(run: FaultyRun) -> None:
        await run.pipeline.run()
        assert sorted(run.trained_slots()) == ALL_SLOTS
        [given_up] = run.events("prompt_given_up")
        assert (given_up["slot"], given_up["prompt_id"], given_up["reason"]) == (13, "p13", "poison")
        deaths = [event["doing"] for event in run.events("worker_died")]
        no_proof = deaths.count({"generate": 1, "load weights": 1})  # alone, but for a load of weights
        assert 2 <= len(deaths) - no_proof <= 4, deaths
        assert no_proof <= 4, deaths

    behaviour: dict[str, Any] = {"token_s": 0.005, stage: frozenset({13})}
    poisoned = EngineBehaviour(**behaviour)
    engines = (poisoned, poisoned) if stage == "kills" else (ENGINE,)
    teachers = (poisoned, poisoned) if stage == "kills_scoring" else (EngineBehaviour(),)
    limits = {"cluster": {"step_timeout_s": 60.0}}  # four restarts in a row on a busy machine
    run_with(tmp_path, scenario, engines=engines, teachers=teachers, settings=limits)


def test_a_teacher_that_disagrees_with_its_replicas_is_not_admitted(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
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
        await running
        assert len(set(run.trained_slots())) == len(run.trained_slots()) > 0

    wrong, health = {"teacher": EngineBehaviour(answer=0.5)}, HEALTH | {"max_restarts": 1}
    run_with(tmp_path, scenario, added=wrong, health=health, settings={"max_steps": 100_000})


@pytest.mark.parametrize("max_staleness", [0, 3])
@pytest.mark.parametrize("fault", ["dies_at", "freezes_at"])
def test_a_lost_learner_is_restarted_from_the_last_checkpoint(
    tmp_path: Path, fault: str, max_staleness: int
) -> None:
    async def scenario(run: FaultyRun) -> None:
        await run.pipeline.run()
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
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 3)
        ranks: list[Worker] = run.pools["learner"].workers
        freeze(ranks[1])
        await running
        check_ledger(run)
        died = run.events("worker_died")
        assert [(e["worker"], e["reason"]) for e in died] == [("learner-1", "no answer to heartbeats for 8 s")]
        assert [event["worker"] for event in run.events("worker_ended")] == ["learner-0"]
        assert len(run.events("learner_restarted")) == 1

    run_with(tmp_path, scenario, settings={"learner": {"num_workers": 2}, "checkpoint": {"every_steps": 1}})


def test_a_learner_that_dies_while_it_waits_for_a_batch_is_brought_back_meanwhile(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        await asyncio.sleep(0.5)  # the step is published by now
        kill(run.pools["learner"].workers[0])
        await eventually(lambda: run.events("learner_lost"), timeout_s=5)
        assert run.events("learner_lost")[0]["reason"] == "between two steps: learner-0 is dead"
        await running
        check_ledger(run)

    slow = EngineBehaviour(token_s=0.29)
    settings = {"checkpoint": {"every_steps": 1}, "max_staleness": 0, "max_steps": 6}
    run_with(tmp_path, scenario, engines=(slow,), settings=settings)


def test_a_rank_that_is_ended_with_a_lost_learner_may_owe_an_answer(tmp_path: Path) -> None:
    """Its heartbeat fails with its end, and that is no news of its next life."""

    async def scenario(run: FaultyRun) -> None:
        running = asyncio.create_task(run.pipeline.run())
        await eventually(lambda: run.pipeline.slots.version == 2)
        await asyncio.sleep(0.5)  # the step is published by now
        first, second = run.pools["learner"].workers
        freeze(second)
        await asyncio.sleep(0.6)  # three heartbeats, well below what counts as dead; there is no batch yet
        kill(first)
        await running
        check_ledger(run)
        assert [event["worker"] for event in run.events("worker_died")] == ["learner-0"]
        assert [event["worker"] for event in run.events("worker_ended")] == ["learner-1"]

    slow = EngineBehaviour(token_s=0.29)
    settings = {"learner": {"num_workers": 2}, "checkpoint": {"every_steps": 1}, "max_staleness": 0}
    run_with(tmp_path, scenario, engines=(slow,), settings=settings)


def test_a_learner_that_is_lost_again_and_again_without_a_new_step_ends_the_run(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        error = await run.failure()
        assert isinstance(error, LearnerLostError)
        assert "training step 2" in str(error)
        assert [event["restart"] for event in run.events("learner_lost")] == [1, 2]
        await eventually(lambda: not other_tasks(), timeout_s=5)

    health = HEALTH | {"max_learner_restarts": 1}
    run_with(tmp_path, scenario, learner=LearnerBehaviour(dies_at=2), health=health)


def lost_reference() -> LocalRef:
    """A reference of a value that does not exist any more."""
    value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    value.set_exception(ObjectLostError("0" * 56, None, ""))
    return LocalRef(value)


def test_slots_whose_scored_tables_are_lost_are_generated_anew_and_the_learner_goes_on(tmp_path: Path) -> None:
    async def scenario(run: FaultyRun) -> None:
        reference = lost_reference()
        take, lost = run.pipeline._scoring.take, list[int]()

        def take_some_lost(slots: list[int]) -> list[Rollout]:
            batch = take(slots)
            if run.pipeline.slots.version != 2 or lost:
                return batch
            lost.extend(slots[:2])
            return [replace(each, table=reference) if each.note.slot in lost else each for each in batch]

        run.pipeline._scoring.take = take_some_lost
        await run.pipeline.run()
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
    async def scenario(run: FaultyRun) -> None:
        error = await run.failure()
        assert isinstance(error, RuntimeError)
        assert "3 steps in a row had no finite gradient" in str(error)
        assert [row["skipped"] for row in run.folder.valid_metrics()] == [0, 0, 1, 1, 1]
        tokens = [row["tokens_trained"] for row in run.folder.valid_metrics()]
        assert run.folder.valid_metrics()[-1]["wasted/skipped"] == sum(tokens[2:]) > 0
        assert (run.folder.checkpoints / "step_5").is_dir()
        rows = run.folder.ledger.read_text().splitlines()
        assert ['"skipped": true' in row for row in rows] == [False, False, True, True, True]

    run_with(tmp_path, scenario, learner=LearnerBehaviour(skips_from=2))
