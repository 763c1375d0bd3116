"""What a run survives, and how it ends where it cannot: simulated workers die, fail and stall."""

import asyncio
from pathlib import Path

import pytest

from cluster.waiting import now
from commands.plan.run import run_virtually
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import (
    FaultyRun,
    eventually,
    kill,
    other_tasks,
    run_config,
    simulated_evaluation,
    simulated_run,
)

pytestmark = pytest.mark.timeout(60)

FAST = EngineBehaviour(token_s=0.0011)
SLOW = EngineBehaviour(token_s=0.016)
SPEED = {"max_steps": 6, "max_staleness": 3}
ALL_SLOTS = list(range(6 * 8))


def test_slots_of_a_killed_rollout_worker_are_generated_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(SLOW, SLOW)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 2)
            kill(run.rollout.workers[0])
            await running
            assert sorted(run.trained_slots()) == ALL_SLOTS
            assert [event["worker"] for event in run.events("worker_died")] == ["rollout-0"]
            assert run.events("prompt_given_up") == []

    run_virtually(scenario())


def test_a_worker_that_dies_between_a_note_and_its_table_costs_no_teacher_and_no_slot(tmp_path: Path) -> None:
    async def scenario() -> None:
        cut_off = EngineBehaviour(token_s=0.0011, dies_after_note=True)
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(cut_off, FAST)) as run:
            await run.pipeline.run()
            assert sorted(run.trained_slots()) == ALL_SLOTS
            assert {event["worker"] for event in run.events("worker_died")} == {
                "rollout-0"
            }  # each time it is back

    run_virtually(scenario())


@pytest.mark.parametrize(("until", "num_said"), [(6, 1), (3, 1), (2, 0), (-1, 0)])
def test_a_gradient_that_vanishes_in_all_of_the_first_steps_is_said_once(
    tmp_path: Path, until: int, num_said: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        learner = LearnerBehaviour(vanishes_until=until)
        config = run_config(tmp_path, **SPEED, objective={"alpha": 50})
        async with simulated_run(config, engines=(FAST,), learner=learner) as run:
            await run.pipeline.run()
            said = run.events("gradient_vanishes")
            assert [event["step"] for event in said] == [3] * num_said
            assert all("objective.alpha 50 rewards of unlikely tokens vanish" in event["reason"] for event in said)

    run_virtually(scenario())
    assert ("too small, 0 by now, for AdamW (learner.eps 1e-08)" in caplog.text) == bool(num_said)


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_prompt_that_cannot_be_generated_is_given_up_and_no_other_is(tmp_path: Path, max_staleness: int) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=6, max_staleness=max_staleness)
        engine = EngineBehaviour(token_s=0.0011, poison=frozenset({13}))
        async with simulated_run(config, engines=(engine, engine)) as run:
            await run.pipeline.run()
            _check_given_up(run, slot=13)
            assert run.prompts.issued.count(13) == config.rollout.max_attempts + 1

    run_virtually(scenario())


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_rollout_that_no_teacher_can_score_is_given_up_and_no_other_is(
    tmp_path: Path, max_staleness: int
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=6, max_staleness=max_staleness)
        teacher = EngineBehaviour(cannot_score=frozenset({13}))
        async with simulated_run(config, engines=(FAST,), teachers=(teacher, teacher)) as run:
            await run.pipeline.run()
            _check_given_up(run, slot=13)
            row = run.folder.metric_rows()[-1]
            assert min(row["wasted/refused"], row["wasted/given_up"]) > 0
            assert row["wasted/lost"] == row["wasted/fall_back"] == 0

    run_virtually(scenario())


def test_a_rollout_worker_that_always_fails_costs_no_prompt_while_another_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        broken = EngineBehaviour(always_fails=True)
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(broken, FAST)) as run:
            await run.pipeline.run()
            assert sorted(run.trained_slots()) == ALL_SLOTS
            assert run.events("prompt_given_up") == []

    run_virtually(scenario())


def test_a_teacher_that_always_fails_costs_no_rollout_while_another_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        broken = EngineBehaviour(always_fails=True)
        async with simulated_run(
            run_config(tmp_path, **SPEED), engines=(FAST,), teachers=(broken, EngineBehaviour())
        ) as run:
            await run.pipeline.run()
            assert sorted(run.prompts.issued) == sorted(run.trained_slots()) == ALL_SLOTS

    run_virtually(scenario())


def test_the_call_of_a_killed_teacher_is_repeated_on_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = EngineBehaviour(score_s=0.3)
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(FAST,), teachers=(slow, slow)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.teacher.workers[0].num_calls)
            kill(run.teacher.workers[0])
            await running
            assert sorted(run.prompts.issued) == sorted(run.trained_slots()) == ALL_SLOTS
            assert [event["worker"] for event in run.events("worker_died")] == ["teacher-0"]

    run_virtually(scenario())


def test_a_run_whose_only_teacher_always_fails_ends_with_the_teachers_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        broken = EngineBehaviour(always_fails=True)
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(FAST,), teachers=(broken,)) as run:
            error = await run.failure()
            assert isinstance(error, RuntimeError)
            assert "16 prompts in a row were given up" in str(error)
            assert "ValueError: the teacher rejects a rollout" in str(error)

    run_virtually(scenario())


def test_an_error_in_the_learner_ends_the_run_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        learner = LearnerBehaviour(fails_at=2)
        async with simulated_run(run_config(tmp_path, **SPEED), engines=(SLOW,), learner=learner) as run:
            error = await run.failure()
            assert isinstance(error, ValueError)
            assert "the learner is broken" in str(error)
            assert len(run.folder.valid_metrics()) == 2
            await eventually(lambda: not other_tasks(), timeout_s=5)

    run_virtually(scenario())


@pytest.mark.parametrize("is_evaluating", [False, True])
def test_a_run_that_is_stopped_before_its_first_step_ends_at_once(tmp_path: Path, *, is_evaluating: bool) -> None:
    """There is nothing to finish and nothing to save, however long a response or an evaluation would take."""
    endless = EngineBehaviour(token_s=1e4)
    evaluation = simulated_evaluation(4) if is_evaluating else None

    async def scenario() -> None:
        config = run_config(tmp_path, cluster={"rollout_timeout_s": 1e8}, checkpoint={"every_steps": 1})
        async with simulated_run(config, engines=(endless,), evaluation=evaluation) as run:
            running = asyncio.create_task(run.pipeline.run())
            await asyncio.sleep(5.0)
            began = now()
            run.pipeline.stop()
            run.pipeline.stop()
            await running
            assert now() - began < 1.0
            assert (run.pipeline.slots.version, running.cancelled(), running.cancelling()) == (0, False, 0)
            assert not run.calls("checkpoint")
            await eventually(lambda: not other_tasks())

    run_virtually(scenario())


def test_a_run_that_is_stopped_within_its_first_step_finishes_and_saves_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, checkpoint={"every_steps": 1})
        async with simulated_run(config, learner=LearnerBehaviour(train_s=5.0)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline._has_begun)
            run.pipeline.stop()
            await running
            assert run.pipeline.slots.version == 1
            assert [event["step"] for event in run.events("checkpoint")] == [1]

    run_virtually(scenario())


def test_a_stage_may_be_idle_for_longer_than_every_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = {"rollout_timeout_s": 1.0, "score_timeout_s": 1.0, "load_timeout_s": 1.0}
        config = run_config(tmp_path, max_steps=2, max_staleness=1, cluster=cluster)
        async with simulated_run(config, engines=(FAST,), learner=LearnerBehaviour(train_s=2.5)) as run:
            await run.pipeline.run()
            assert sorted(run.trained_slots()) == list(range(16))

    run_virtually(scenario())


def test_a_failed_weight_load_is_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with simulated_run(
            run_config(tmp_path, **SPEED), engines=(EngineBehaviour(failing_loads=1), FAST)
        ) as run:
            await run.pipeline.run()
            assert [event["worker"] for event in run.events("weights_failed")] == ["rollout-0"]
            assert run.events("worker_died") == []
            assert sorted(run.trained_slots()) == ALL_SLOTS

    run_virtually(scenario())


def test_a_worker_whose_weight_load_fails_twice_is_given_up_and_the_run_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with simulated_run(
            run_config(tmp_path, **SPEED), engines=(EngineBehaviour(failing_loads=2), FAST)
        ) as run:
            await run.pipeline.run()
            deaths = run.events("worker_died")  # its next engine fails as this one did, if the run lasts so long
            assert {event["worker"] for event in deaths} == {"rollout-0"}
            assert all("the engine cannot load" in event["reason"] for event in deaths)
            assert sorted(run.trained_slots()) == ALL_SLOTS

    run_virtually(scenario())


def test_an_evaluation_repeats_on_other_workers_what_a_dead_one_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, **SPEED)
        async with simulated_run(config, engines=(SLOW, SLOW), evaluation=simulated_evaluation(40)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 6)
            kill(run.rollout.workers[0])
            await running
            rows = run.folder.path.joinpath("eval.jsonl").read_text().splitlines()
            assert len(rows) == 2
            assert '"avg_at_k": 1.0' in rows[1]
            assert sorted(run.trained_slots()) == ALL_SLOTS

    run_virtually(scenario())


def _check_given_up(run: FaultyRun, *, slot: int) -> None:
    """The slot's prompt, and only that, was replaced by the first place after the last slot's."""
    [event] = run.events("prompt_given_up")
    assert (event["slot"], event["prompt_id"]) == (slot, f"p{slot}")
    assert run.prompts.replacements == {slot: len(ALL_SLOTS)}
    assert run.folder.valid_metrics()[-1]["prompts_given_up"] == 1
    assert sorted(run.trained_slots()) == ALL_SLOTS
    assert run.events("worker_died") == []
