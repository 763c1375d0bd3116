"""Workers come and go while a run streams: the real controller on simulated engines, in virtual time."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.scaling import MAX_PLACING
from cluster.worker import Worker, WorkerState
from commands.plan.local_pool import LocalPool
from commands.plan.run import run_virtually
from records.files import read_rows
from tests.simulated import NEVER_S, EngineBehaviour
from tests.simulated_run import FaultyRun, eventually, kill, other_tasks, run_config, simulated_run

pytestmark = pytest.mark.timeout(60)

ENGINE = EngineBehaviour(token_s=0.011, load_s=0.05)
STEPS, BATCH, STALENESS = 60, 8, 3


def test_growing_and_shrinking_loses_nothing_trains_nothing_twice_and_keeps_the_bound(tmp_path: Path) -> None:
    async def scenario() -> None:
        scores = tmp_path / "scores.jsonl"
        config = run_config(tmp_path, max_steps=STEPS, max_staleness=STALENESS, batches_ahead=2)
        teacher = EngineBehaviour(scores=scores, score_s=0.02)
        async with simulated_run(config, engines=(ENGINE,), teachers=(teacher,)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 2)
            run.pipeline.scaling.resize("rollout", 3, "test")
            run.pipeline.scaling.resize("teacher", 2, "test")
            await _eventually(running, lambda: len(run.rollout.healthy) == 3 and len(run.teacher.healthy) == 2)
            worked: set[str] = set()
            await _eventually(running, lambda: _note_busy(run, worked) >= {"rollout-1", "rollout-2", "teacher-1"})
            run.pipeline.scaling.resize("rollout", 1, "test")
            run.pipeline.scaling.resize("teacher", 1, "test")
            assert [w.state for w in run.rollout.workers[1:]] == [WorkerState.DRAINING] * 2
            await _eventually(running, lambda: all(w.is_gone for w in _added(run)))
            assert [w.state for w in _added(run)] == [WorkerState.RETIRED] * 3
            assert run.pipeline.slots.version < STEPS, "the run was over before it was scaled down"
            await running
            _check_nothing_lost(run)
            assert [(e["role"], e["from"], e["to"]) for e in run.events("scaled")] == [
                *(("rollout", 1, 3), ("teacher", 1, 2), ("rollout", 3, 1), ("teacher", 2, 1)),
            ]
            started = {e["worker"]: e["reason"] for e in run.events("worker_started")}
            retired = {e["worker"]: e["reason"] for e in run.events("worker_retired")}
            added = {"rollout-1", "rollout-2", "teacher-1"}
            assert {started[name] for name in added} == {"scale up"}
            assert retired == dict.fromkeys(added, "scale down")
            assert run.events("rollout_failed") == run.events("scoring_failed") == []
            await eventually(lambda: not other_tasks(), timeout_s=5)

    run_virtually(scenario())


def test_the_throughput_of_rollouts_follows_the_number_of_workers_where_engines_are_the_limit(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=25, max_staleness=STALENESS, rollout={"max_in_flight": 2})
        engine = EngineBehaviour(token_s=0.048, load_s=0.01)
        async with simulated_run(config, engines=(engine,)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await _eventually(running, lambda: run.pipeline.slots.version >= 4)
            run.pipeline.scaling.resize("rollout", 3, "test")
            await _eventually(running, lambda: len(run.rollout.healthy) == 3)
            grown = run.pipeline.slots.version
            await _eventually(running, lambda: run.pipeline.slots.version >= grown + 8)
            run.pipeline.scaling.resize("rollout", 1, "test")
            await running
            _check_nothing_lost(run, steps=25)
            rates = {count: _rate(run, count) for count in (1, 3)}
            assert rates[3] > 1.7 * rates[1], rates

    run_virtually(scenario())


def test_what_a_draining_worker_cannot_finish_in_time_is_done_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("cluster.pool.SHUTDOWN_TIMEOUT_S", 0.5)
        limits: dict[str, Any] = {"cluster": {"drain_timeout_s": 0.3}, "rollout": {"max_in_flight": 12}}
        config = run_config(tmp_path, max_steps=6, max_staleness=STALENESS, **limits)
        stuck = EngineBehaviour(token_s=NEVER_S, score_s=NEVER_S)
        engines, teachers = (ENGINE, stuck), (EngineBehaviour(score_s=0.2), stuck)
        async with simulated_run(config, engines=engines, teachers=teachers) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.rollout.workers[1].num_slots and run.teacher.workers[1].num_calls)
            held = run.rollout.workers[1].num_slots
            run.pipeline.scaling.resize("rollout", 1, "test")
            run.pipeline.scaling.resize("teacher", 1, "test")
            await running
            _check_nothing_lost(run, steps=6)
            taken_back = [slot for event in run.events("rollouts_taken_back") for slot in event["slots"]]
            assert len(taken_back) == held
            assert sorted(run.prompts.issued) == sorted([*range(6 * BATCH), *taken_back])
            attempts = {slot: run.prompts.attempts[slot] for slot in taken_back}
            assert attempts == {slot: [0, 1] for slot in taken_back}
            assert run.events("prompt_given_up") == run.events("worker_died") == []
            [reason] = {event["reason"] for event in run.events("worker_retired")}
            assert reason == "scale down; not finished after 0.3 s"

    run_virtually(scenario())


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_a_worker_that_dies_while_it_drains_costs_nothing(tmp_path: Path, role: str) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=6, max_staleness=STALENESS)
        slow = EngineBehaviour(token_s=0.053, score_s=0.5)
        async with simulated_run(
            config, engines=(ENGINE, slow), teachers=(EngineBehaviour(score_s=0.2), slow)
        ) as run:
            running = asyncio.create_task(run.pipeline.run())
            worker = run.pools[role].workers[1]
            await eventually(lambda: worker.num_slots or worker.num_calls)
            run.pipeline.scaling.resize(role, 1, "test")
            kill(worker)
            await running
            _check_nothing_lost(run, steps=6)
            assert worker.state is WorkerState.RETIRED
            assert [event["worker"] for event in run.events("worker_died")] == [worker.name]
            assert run.events("worker_retired") == []

    run_virtually(scenario())


def test_an_added_worker_that_cannot_load_is_an_event_and_the_run_continues(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=40, max_staleness=STALENESS)
        broken = EngineBehaviour(failing_loads=1000)
        async with simulated_run(config, engines=(ENGINE,), added={"rollout": broken}) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 1)
            run.pipeline.scaling.resize("rollout", 2, "test")
            await _eventually(running, lambda: run.events("worker_died"))
            [died, *_] = run.events("worker_died")
            assert died["worker"] == "rollout-1"
            assert "the engine cannot load" in died["reason"]
            run.pipeline.scaling.resize("rollout", 2, "test")  # which is tried again
            assert [worker.name for worker in run.rollout.workers] == ["rollout-0", "rollout-1"]
            await running
            _check_nothing_lost(run, steps=40)

    run_virtually(scenario())


def test_a_resize_before_the_stream_begins_is_carried_out_and_one_taken_back_starts_nothing(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=60, max_staleness=STALENESS)
        async with simulated_run(config, engines=(ENGINE,)) as run:
            run.pipeline.scaling.resize("rollout", 2, "test")
            run.pipeline.scaling.resize("teacher", 3, "test")
            run.pipeline.scaling.resize("teacher", 1, "test")
            running = asyncio.create_task(run.pipeline.run())
            await _eventually(running, lambda: len(run.rollout.healthy) == 2)
            await running
            _check_nothing_lost(run, steps=60)
            states = [worker.state.value for worker in run.teacher.workers]
            assert states == ["healthy", "retired", "retired"]

    run_virtually(scenario())


class FullCluster(LocalPool):
    """A pool that finds capacity for its first worker alone."""

    num_placing = 0

    async def create(self, workers: list[Worker], turn: asyncio.Lock | None = None) -> None:
        """The others wait until they are wanted no more."""
        if workers[0].name.endswith("-0"):
            return await super().create(workers, turn)
        self.num_placing += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.num_placing -= 1


def test_of_thousands_of_workers_few_are_placed_at_once_and_training_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=10, max_staleness=STALENESS)
        async with simulated_run(config, engines=(ENGINE,), pool_class=FullCluster) as run:
            pool = run.rollout
            assert isinstance(pool, FullCluster)
            change = run.pipeline.scaling.resize("rollout", 2000, "test")
            assert str(change).endswith("rollout-20 and 1979 more, to serve once on the newest weights")
            running = asyncio.create_task(run.pipeline.run())
            await _eventually(running, lambda: run.pipeline.slots.version >= 2)
            assert pool.num_placing == MAX_PLACING
            run.pipeline.scaling.resize("rollout", 1, "test")
            await running
            assert pool.num_placing == 0
            _check_nothing_lost(run, steps=10)

    run_virtually(scenario())


def test_the_death_of_the_only_worker_while_another_starts_does_not_end_the_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=6, max_staleness=STALENESS)
        async with simulated_run(config, engines=(ENGINE,), teachers=(EngineBehaviour(score_s=0.3),)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.teacher.workers[0].num_calls)
            for pool in (run.rollout, run.teacher):
                run.pipeline.scaling.resize(pool.role, 2, "test")
                kill(pool.workers[0])
            await running
            _check_nothing_lost(run, steps=6)
            assert {event["worker"] for event in run.events("worker_died")} == {"rollout-0", "teacher-0"}

    run_virtually(scenario())


def _added(run: FaultyRun) -> list[Worker]:
    return [*run.rollout.workers[1:], *run.teacher.workers[1:]]


def _note_busy(run: FaultyRun, worked: set[str]) -> set[str]:
    """Add the names of workers that have work just now."""
    busy = {w.name for pool in (run.rollout, run.teacher) for w in pool.workers if w.num_slots or w.num_calls}
    worked |= busy
    return worked


async def _eventually(running: asyncio.Task[None], condition: Any) -> None:
    """Wait for a condition while the run is running; an error that ended the run is raised here."""
    await eventually(lambda: running.done() or condition(), timeout_s=60)
    if running.done():
        running.result()
    assert condition(), "the run ended too early for this test"


def _rate(run: FaultyRun, num_rollout: int) -> float:
    """Mean rollout tokens per second of the steps with so many rollout workers."""
    rows = [row for row in read_rows(run.folder.metrics) if row["workers/rollout"] == num_rollout]
    seconds = sum(row["time/step_s"] for row in rows)
    return sum(row["throughput/rollout"] * row["time/step_s"] for row in rows) / seconds


def _check_nothing_lost(run: FaultyRun, *, steps: int = STEPS) -> None:
    """Every slot was trained once, within the bound."""
    assert sorted(run.trained_slots()) == list(range(steps * BATCH))
    staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
    assert min(staleness) >= 0
    assert max(staleness) <= STALENESS
    slots = sorted(slot for call in run.calls("train_step") for slot in call["slots"])
    assert slots == list(range(steps * BATCH))
    assert [row["step"] for row in read_rows(run.folder.metrics)] == list(range(1, steps + 1))


def test_nodes_are_asked_for_where_there_is_no_capacity_and_the_request_is_withdrawn_at_the_end(
    tmp_path: Path,
) -> None:
    class Growing:
        """A cluster without capacity that can be asked for more; no node comes."""

        may_grow = True

        def __init__(self) -> None:
            self.requests: list[list[dict[str, float]]] = []

        async def free(self) -> dict[str, float]:
            return {}

        async def request(self, bundles: Sequence[dict[str, float]]) -> None:
            self.requests.append([*bundles])

    async def scenario() -> None:
        asked = Growing()
        limits: dict[str, Any] = {
            **{"enabled": True, "readings": 2, "every_s": 0.5, "cooldown_s": 0.2},
            **{"rollout": {"max_workers": 1}, "teacher": {"max_workers": 3}},
        }
        config = run_config(
            tmp_path,
            **{"batch_size": 4, "max_steps": 2000, "max_staleness": 2, "balance": limits},
            teacher={"model_path": "simulated", "max_batch_tokens": 1, "max_calls_in_flight": 1},
        )
        teachers = [EngineBehaviour(score_s=0.2)]
        async with simulated_run(config, engines=[EngineBehaviour()], teachers=teachers, cluster=asked) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(
                lambda: running.done() or len(run.teacher.healthy) == 3,
                timeout_s=90,
            )
            run.pipeline.stop()
            await asyncio.wait_for(running, 30)
            [event] = run.events("nodes_requested")
            assert event["workers"] == {"rollout": 1, "teacher": 3}
            assert asked.requests == [[{"CPU": 0.01}] * 5, []]  # the learner, a rollout worker, three teachers

    asyncio.run(scenario())
