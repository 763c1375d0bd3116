"""Evaluations beside training: on workers of their own, and on a rollout worker that is borrowed."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from commands.plan.run import run_virtually
from records.files import read_rows
from settings.run import RunConfig
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import (
    FaultyRun,
    eventually,
    kill,
    run_config,
    simulated_evaluation,
    simulated_run,
)

pytestmark = pytest.mark.timeout(60)

FAST = EngineBehaviour(token_s=0.0011)
SLOW = EngineBehaviour(token_s=0.063)
"""One evaluation takes about a second on it, some steps of training."""

STEPS, BATCH, BOUND = 30, 8, 3
LEARNER = LearnerBehaviour(train_s=0.1)


def settings(path: Path, evaluation: dict[str, Any], **others: Any) -> RunConfig:
    given = {"data_path": "none", "teacher": False, "every_steps": 10, "num_samples": 1, "k": 1} | evaluation
    return run_config(path, max_steps=STEPS, max_staleness=BOUND, evaluation=given, **others)


def rows_of(run: FaultyRun) -> list[dict[str, Any]]:
    return read_rows(run.folder.evaluations)


def check_trained(run: FaultyRun) -> None:
    """Every slot once, and within the bound."""
    assert sorted(run.trained_slots()) == list(range(STEPS * BATCH))
    assert max(max(call["staleness"]) for call in run.calls("train_step")) <= BOUND


def check_rows(run: FaultyRun, steps: list[int], num_problems: int) -> None:
    """The rows of these steps were sampled under the weights of their step, row by row."""
    rows = rows_of(run)
    assert [row["step"] for row in rows] == steps
    for row in rows:
        assert row["weight_version"] == row["step"]
        kept = pq.read_table(run.folder.evaluation_results / f"step_{row['step']}" / f"{row['benchmark']}.parquet")
        assert kept.num_rows == num_problems
        assert set(kept.column("weight_version").to_pylist()) == {row["step"]}


def steps_during(run: FaultyRun, step: int) -> int:
    """Optimizer steps that were trained while the evaluation of a step ran."""
    rows = read_rows(run.folder.events)
    kinds = [(row["event"], row.get("step")) for row in rows]
    first, last = kinds.index(("evaluation_started", step)), kinds.index(("evaluated", step))
    return sum(row["event"] == "weights_published" for row in rows[first:last])


def test_workers_of_its_own_evaluate_each_version_while_training_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {"num_workers": 1})
        evaluation = simulated_evaluation(20)
        # Ten steps last longer than an evaluation, even the first, whose worker still imports: none is skipped.
        learner = LearnerBehaviour(train_s=0.4)
        run_of: dict[str, Any] = {"evaluation": evaluation, "evaluators": (SLOW,), "learner": learner}
        async with simulated_run(config, engines=(FAST, FAST), **run_of) as run:
            await run.pipeline.run()
            check_trained(run)
            check_rows(run, [0, 10, 20, 30], num_problems=20)
            models = [row["model"] for row in rows_of(run)]
            assert models == ["student_before", "student", "student", "student_after"]
            assert min(steps_during(run, step) for step in (10, 20)) >= 2
            assert {event["worker"] for event in run.events("weights_loaded") if event["version"] == 10} >= {
                "evaluation-0"
            }
            assert run.pools["evaluation"].workers[0].version == 30
            assert run.events("evaluation_skipped") == []

    run_virtually(scenario())


def test_teacher_and_student_are_evaluated_side_by_side_before_training(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {"teacher": True, "every_steps": 0})
        slower = EngineBehaviour(token_s=0.17)
        evaluation = simulated_evaluation(20)
        async with simulated_run(config, engines=(SLOW,), teachers=(slower,), evaluation=evaluation) as run:
            await run.pipeline.run()
            check_trained(run)
            assert [row["model"] for row in rows_of(run)] == ["teacher", "student_before", "student_after"]
            teacher, student, _ = run.events("evaluated")
            assert teacher["seconds"] > 2.5
            assert student["seconds"] > 0.9

    run_virtually(scenario())


def test_a_borrowed_rollout_worker_keeps_its_version_while_the_others_train(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {})
        slow = EngineBehaviour(token_s=0.016)
        async with simulated_run(
            config, engines=(slow, slow), learner=LEARNER, evaluation=simulated_evaluation(20)
        ) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: any(worker.pinned for worker in run.rollout.workers))
            [borrowed] = [worker for worker in run.rollout.workers if worker.pinned]
            await eventually(lambda: borrowed.num_slots == 0 or not borrowed.pinned)
            while borrowed.pinned:
                assert borrowed.num_slots == 0, "a borrowed worker was given slots"
                assert run.pipeline.status()["evaluation"]["step"] in (10, 20)
                await asyncio.sleep(0.01)
            await running
            check_trained(run)
            check_rows(run, [0, 10, 20, 30], num_problems=20)
            assert [borrowed.version, borrowed.pinned] == [30, None]

    run_virtually(scenario())


def test_a_killed_evaluation_worker_comes_back_with_the_same_version_and_what_is_due_meanwhile_is_skipped(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {"num_workers": 1, "every_steps": 5})
        given: dict[str, Any] = {"evaluation": simulated_evaluation(20, num_benchmarks=2), "evaluators": (SLOW,)}
        async with simulated_run(config, engines=(FAST, FAST), learner=LEARNER, **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 2)
            kill(run.pools["evaluation"].workers[0])
            await running
            check_trained(run)
            steps = sorted({row["step"] for row in rows_of(run)})
            assert [steps[0], steps[-1]] == [0, STEPS]
            check_rows(run, sorted(steps * 2), num_problems=10)
            assert [event["step"] for event in run.events("evaluation_skipped")] == sorted(
                {*range(5, 30, 5)} - {*steps}
            )
            assert run.events("evaluation_skipped")
            assert [event["worker"] for event in run.events("worker_restarted")] == ["evaluation-0"]

    run_virtually(scenario())


def test_a_fall_back_of_the_learner_gives_the_borrowed_worker_back_and_the_step_is_evaluated_anew(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {}, checkpoint={"every_steps": 5})
        learner = LearnerBehaviour(train_s=0.1, dies_at=10, num_faults=1)
        slow = EngineBehaviour(token_s=0.026)
        given: dict[str, Any] = {"evaluation": simulated_evaluation(20), "learner": learner}
        async with simulated_run(config, engines=(slow, slow), **given) as run:
            await run.pipeline.run()
            check_trained(run)
            check_rows(run, [0, 10, 20, 30], num_problems=20)
            assert [event["step"] for event in run.events("evaluation_abandoned")] == [10]
            assert {worker.version for worker in run.rollout.workers} == {STEPS}

    run_virtually(scenario())


def test_the_evaluation_pool_can_grow_and_a_borrowed_worker_that_is_given_up_costs_its_evaluation_alone(
    tmp_path: Path,
) -> None:
    async def grown() -> None:
        config = settings(tmp_path / "grown", {"num_workers": 1})
        learner = LearnerBehaviour(train_s=0.4)  # time for another process to start
        given: dict[str, Any] = {"evaluation": simulated_evaluation(20), "learner": learner}
        async with simulated_run(config, engines=(FAST, FAST), **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 1)
            assert run.pipeline.scaling.resize("evaluation", 2, "test").after == 2
            await running
            check_trained(run)
            check_rows(run, [0, 10, 20, 30], num_problems=20)
            assert "evaluation-1" in {event["worker"] for event in run.events("weights_loaded")}

    async def given_up() -> None:
        health = {"max_restarts": 0}
        config = settings(tmp_path / "given_up", {}, health=health)
        slow = EngineBehaviour(token_s=0.016)
        given: dict[str, Any] = {"evaluation": simulated_evaluation(20), "learner": LEARNER}
        async with simulated_run(config, engines=(slow, slow), **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: any(worker.pinned for worker in run.rollout.workers))
            kill(next(worker for worker in run.rollout.workers if worker.pinned))
            await running
            check_trained(run)
            check_rows(run, [0, 20, 30], num_problems=20)
            assert [event["step"] for event in run.events("evaluation_skipped")] == [10]
            assert not (run.folder.evaluation_results / "step_10").exists()

    run_virtually(grown())
    run_virtually(given_up())
