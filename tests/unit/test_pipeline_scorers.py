"""Several teachers and a reference model in the flow of a run: simulated engines, in virtual time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from commands.plan.run import run_virtually
from records.files import read_rows
from tests.simulated import NEVER_S, EngineBehaviour
from tests.simulated_run import FaultyRun, eventually, kill, run_config, simulated_run

pytestmark = pytest.mark.timeout(60)

FAST = EngineBehaviour(token_s=0.0011)
SLOW = EngineBehaviour(token_s=0.011)
TEACHERS: dict[str, Any] = {
    "teacher": {"sources": ["a"]},
    "teachers": {"code": {"sources": ["b", "c"], "max_batch_tokens": 60}},
}
SPEED = {"max_steps": 6, "max_staleness": 3}
ALL_SLOTS = list(range(6 * 8))


def prompts_of(path: Path) -> set[int]:
    """Places of the prompts that an engine scored; their sources take turns: a, b, c, a, ..."""
    return {sequence[0] for row in read_rows(path) for sequence in row["sequences"]}


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_each_source_goes_to_its_teacher_alone_and_every_slot_is_scored_by_the_reference_and_trained_once(
    tmp_path: Path, max_staleness: int
) -> None:
    async def scenario() -> None:
        calls = {role: tmp_path / f"{role}.jsonl" for role in ("teacher", "teacher-code", "reference")}
        engines = {role: (EngineBehaviour(scores=path),) for role, path in calls.items()}
        config = run_config(tmp_path, max_steps=6, max_staleness=max_staleness, reference={}, **TEACHERS)
        async with simulated_run(
            config, engines=(SLOW, SLOW), teachers=engines.pop("teacher"), scorers=engines
        ) as run:
            await run.pipeline.run()
            assert prompts_of(calls["teacher"]) == {slot for slot in ALL_SLOTS if slot % 3 == 0}
            assert prompts_of(calls["teacher-code"]) == {slot for slot in ALL_SLOTS if slot % 3 > 0}
            assert prompts_of(calls["reference"]) == {*ALL_SLOTS}
            assert sorted(run.trained_slots()) == sorted(run.prompts.issued) == ALL_SLOTS
            staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
            assert min(staleness) >= 0
            assert max(staleness) <= max_staleness
            row = run.folder.valid_metrics()[-1]
            workers = {name: value for name, value in row.items() if name.startswith("workers/")}
            assert workers == {
                **{"workers/rollout": 2, "workers/teacher": 2},
                **{"workers/teacher-code": 1, "workers/reference": 1},
            }
            assert {"throughput/teacher", "throughput/teacher-code", "throughput/reference"} <= row.keys()
            started = {event["worker"] for event in run.events("worker_started")}
            assert {"teacher-0", "teacher-code-0", "reference-0"} < started

    run_virtually(scenario())


def test_a_synchronous_run_with_two_teachers_and_a_reference_scores_the_same_batches_each_time(
    tmp_path: Path,
) -> None:
    async def scenario(name: str, engine: EngineBehaviour, score_s: float) -> dict[str, list[dict]]:
        calls = {role: tmp_path / f"{name}-{role}.jsonl" for role in ("teacher", "teacher-code", "reference")}
        engines = {role: (EngineBehaviour(scores=path),) for role, path in calls.items()}
        engines["teacher"] = (EngineBehaviour(scores=calls["teacher"], score_s=score_s),)
        config = run_config(
            tmp_path,
            run_name=name,
            max_steps=6,
            max_staleness=0,
            reference={"max_batch_tokens": 60},
            **TEACHERS,
        )
        async with simulated_run(
            config, engines=(engine,) * 2, teachers=engines.pop("teacher"), scorers=engines
        ) as run:
            await run.pipeline.run()
            for step, call in enumerate(run.calls("train_step")):
                assert call["slots"] == list(range(8 * step, 8 * step + 8))
        return {role: read_rows(path) for role, path in calls.items()}

    first = run_virtually(scenario("first", FAST, 0.0))
    second = run_virtually(scenario("second", SLOW, 0.05))
    assert first == second
    assert len(first["reference"]) > 6


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_failed_call_of_the_reference_is_repeated_without_generating_or_asking_the_teacher_again(
    tmp_path: Path, max_staleness: int
) -> None:
    async def scenario() -> None:
        path = tmp_path / "teacher.jsonl"
        config = run_config(tmp_path, max_steps=6, max_staleness=max_staleness, reference={})
        async with simulated_run(
            config,
            engines=(FAST,),
            teachers=(EngineBehaviour(scores=path),),
            scorers={"reference": (EngineBehaviour(failing_scores=2),)},
        ) as run:
            await run.pipeline.run()
            _check_nothing_twice(run)
            assert {event["worker"] for event in run.events("scoring_failed")} == {"reference-0"}
            assert sorted(s[0] for row in read_rows(path) for s in row["sequences"]) == ALL_SLOTS

    run_virtually(scenario())


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_rollout_that_the_reference_cannot_score_is_given_up_and_no_other_is(
    tmp_path: Path, max_staleness: int
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=6, max_staleness=max_staleness, reference={}, **TEACHERS)
        broken = EngineBehaviour(cannot_score=frozenset({13}))
        async with simulated_run(config, engines=(FAST,), scorers={"reference": (broken, broken)}) as run:
            await run.pipeline.run()
            [event] = run.events("prompt_given_up")
            assert (event["slot"], event["prompt_id"]) == (13, "p13")
            assert sorted(run.trained_slots()) == ALL_SLOTS

    run_virtually(scenario())


def test_the_call_of_a_killed_reference_worker_is_repeated_on_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, **SPEED, reference={})
        slow = EngineBehaviour(score_s=0.3)
        async with simulated_run(config, engines=(FAST,), scorers={"reference": (slow, slow)}) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pools["reference"].workers[0].num_calls)
            kill(run.pools["reference"].workers[0])
            await running
            _check_nothing_twice(run)
            assert [event["worker"] for event in run.events("worker_died")] == ["reference-0"]

    run_virtually(scenario())


def test_the_last_worker_of_one_teacher_that_is_given_up_fails_the_run_with_its_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, **SPEED, **TEACHERS, health={"max_restarts": 0})
        async with simulated_run(config, engines=(SLOW,)) as run:
            failing = asyncio.create_task(run.failure())
            await eventually(lambda: run.pipeline.slots.version == 1)
            kill(run.pools["teacher-code"].workers[0])
            error = await failing
            assert "no teacher-code worker is left; teacher-code-0 was given up last" in str(error)

    run_virtually(scenario())


def test_a_stalled_reference_stops_teachers_and_rollouts_and_every_queue_stays_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(
            tmp_path,
            max_staleness=8,
            batches_ahead=8,
            teacher={"max_batch_tokens": 1},
            reference={"max_batch_tokens": 1},
        )
        stalled = EngineBehaviour(score_s=NEVER_S)
        async with simulated_run(config, engines=(FAST,), scorers={"reference": (stalled,)}) as run:
            running = asyncio.create_task(run.pipeline.run())
            scoring = run.pipeline._scoring
            teacher, reference = scoring._lanes["teacher"], scoring._lanes["reference"]
            await eventually(lambda: teacher.is_full and reference.is_full)
            await asyncio.sleep(0.5)
            assert len(teacher.queue) == 2 * 8
            assert 2 * 8 <= len(reference.queue) <= 2 * 8 + 2  # what was with the teacher when it was full
            assert reference.num_called == 2
            assert scoring.is_busy
            running.cancel()
            await asyncio.wait({running}, timeout=5)
            assert running.cancelled()

    run_virtually(scenario())


def _check_nothing_twice(run: FaultyRun) -> None:
    """Every slot was generated once and trained once."""
    assert sorted(run.prompts.issued) == sorted(run.trained_slots()) == ALL_SLOTS
