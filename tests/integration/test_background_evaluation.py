"""Evaluations beside training: on workers of their own, and on a rollout worker that is borrowed."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from records.files import read_rows
from settings.run import RunConfig
from tests.integration.simulated import EngineBehaviour, LearnerBehaviour
from tests.integration.simulated_evaluation import simulated_evaluation
from tests.integration.simulated_run import SimulatedRun, eventually, run_config, simulated_run

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("local_ray")]

FAST = EngineBehaviour(fastest_s=0.001, slowest_s=0.02)
SLOW = EngineBehaviour(fastest_s=1.0, slowest_s=1.2)
"""One evaluation takes about a second on it, some steps of training."""

STEPS, BATCH, BOUND = 30, 8, 3
LEARNER = LearnerBehaviour(train_s=0.1)


def settings(path: Path, evaluation: dict[str, Any], **others: Any) -> RunConfig:
    given = {"data_path": "none", "teacher": False, "every_steps": 10, "num_samples": 1, "k": 1} | evaluation
    return run_config(path, max_steps=STEPS, max_staleness=BOUND, evaluation=given, **others)


def rows_of(run: SimulatedRun) -> list[dict[str, Any]]:
    return read_rows(run.folder.evaluations)


def check_trained(run: SimulatedRun) -> None:
    """Every slot once, and within the bound."""
    assert sorted(run.trained_slots()) == list(range(STEPS * BATCH))
    assert max(max(call["staleness"]) for call in run.calls("train_step")) <= BOUND


def check_rows(run: SimulatedRun, steps: list[int], num_problems: int) -> None:
    """The rows of these steps were sampled under the weights of their step, row by row."""
    rows = rows_of(run)
    assert [row["step"] for row in rows] == steps
    for row in rows:
        assert row["weight_version"] == row["step"]
        kept = pq.read_table(run.folder.evaluation_results / f"step_{row['step']}" / f"{row['benchmark']}.parquet")
        assert kept.num_rows == num_problems
        assert set(kept.column("weight_version").to_pylist()) == {row["step"]}


def steps_during(run: SimulatedRun, step: int) -> int:
    """Optimizer steps that were trained while the evaluation of a step ran."""
    [began] = [event["time"] for event in run.events("evaluation_started") if event["step"] == step]
    [ended] = [event["time"] for event in run.events("evaluated") if event["step"] == step]
    return sum(began < row["time_s"] < ended for row in read_rows(run.folder.metrics))


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

    asyncio.run(scenario())


def test_teacher_and_student_are_evaluated_side_by_side_before_training(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {"teacher": True, "every_steps": 0})
        slower = EngineBehaviour(fastest_s=3.0, slowest_s=3.2)
        evaluation = simulated_evaluation(20)
        async with simulated_run(config, engines=(SLOW,), teachers=(slower,), evaluation=evaluation) as run:
            await run.pipeline.run()
            check_trained(run)
            assert [row["model"] for row in rows_of(run)] == ["teacher", "student_before", "student_after"]
            teacher, student, _ = run.events("evaluated")
            assert teacher["seconds"] >= 3
            assert student["time"] - teacher["time"] < 0.9 < student["seconds"]

    asyncio.run(scenario())


def test_a_borrowed_rollout_worker_keeps_its_version_while_the_others_train(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {})
        slow = EngineBehaviour(fastest_s=0.15, slowest_s=0.3)
        async with simulated_run(
            config, engines=(slow, slow), learner=LEARNER, evaluation=simulated_evaluation(200)
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
            check_rows(run, [0, 10, 20, 30], num_problems=200)
            assert [borrowed.version, borrowed.pinned] == [30, None]

    asyncio.run(scenario())


def test_a_killed_evaluation_worker_comes_back_with_the_same_version_and_what_is_due_meanwhile_is_skipped(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {"num_workers": 1, "every_steps": 5})
        given: dict[str, Any] = {"evaluation": simulated_evaluation(20, num_benchmarks=2), "evaluators": (SLOW,)}
        async with simulated_run(config, engines=(FAST, FAST), learner=LEARNER, **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 2)
            ray.kill(run.pools["evaluation"].workers[0].handle)
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

    asyncio.run(scenario())


def test_a_fall_back_of_the_learner_gives_the_borrowed_worker_back_and_the_step_is_evaluated_anew(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = settings(tmp_path, {}, checkpoint={"every_steps": 5})
        learner = LearnerBehaviour(train_s=0.1, dies_at=10, num_faults=1)
        slow = EngineBehaviour(fastest_s=0.3, slowest_s=0.5)
        given: dict[str, Any] = {"evaluation": simulated_evaluation(200), "learner": learner}
        async with simulated_run(config, engines=(slow, slow), **given) as run:
            await run.pipeline.run()
            check_trained(run)
            check_rows(run, [0, 10, 20, 30], num_problems=200)
            assert [event["step"] for event in run.events("evaluation_abandoned")] == [10]
            assert {worker.version for worker in run.rollout.workers} == {STEPS}

    asyncio.run(scenario())


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
        slow = EngineBehaviour(fastest_s=0.15, slowest_s=0.3)
        given: dict[str, Any] = {"evaluation": simulated_evaluation(200), "learner": LEARNER}
        async with simulated_run(config, engines=(slow, slow), **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: any(worker.pinned for worker in run.rollout.workers))
            ray.kill(next(worker.handle for worker in run.rollout.workers if worker.pinned))
            await running
            check_trained(run)
            check_rows(run, [0, 20, 30], num_problems=200)
            assert [event["step"] for event in run.events("evaluation_skipped")] == [10]
            assert not (run.folder.evaluation_results / "step_10").exists()

    asyncio.run(grown())
    asyncio.run(given_up())
