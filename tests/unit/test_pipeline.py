"""The flow of a run: the real controller and workers on engines that only take time, in virtual time."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.waiting import now
from commands.plan.run import run_virtually
from records.files import read_rows
from records.ledger import slots_of, valid_ledger
from settings.run import RunConfig
from tests.simulated import NEVER_S, EngineBehaviour, LearnerBehaviour
from tests.simulated_run import eventually, other_tasks, run_config, simulated_run

pytestmark = pytest.mark.timeout(60)

METRICS = (
    *("step", "weight_version", "time_s", "tokens_trained", "reward/mean", "reward/abs_p95"),
    *("reward/frac_abs_gt_0.01", "kl/reverse", "kl/mismatch", "grad_norm", "loss", "lr", "importance/mean"),
    *("importance/capped_frac", "staleness/mean", "staleness/max", "response_length/mean", "truncated_frac"),
    *("entropy", "time/rollout_wait_s", "time/score_wait_s", "time/train_s", "time/publish_s"),
    *("queue/rollouts", "queue/scored", "workers/rollout", "workers/teacher"),
    *("wait/rollout_s", "wait/teacher_s", "wait/learner_s", "backpressure/teacher_s", "backpressure/learner_s"),
    *("busy/rollout", "busy/teacher", "busy/learner", "used/rollout", "used/teacher"),
)
SLOW_ROLLOUTS = EngineBehaviour(token_s=0.011)
FAST_ROLLOUTS = EngineBehaviour(token_s=0.0011)


@pytest.mark.parametrize(
    ("max_staleness", "batches_ahead", "engine", "train_s"),
    [
        (1, 0, SLOW_ROLLOUTS, 0.001),
        (1, 1, SLOW_ROLLOUTS, 0.001),
        (1, 1, FAST_ROLLOUTS, 0.05),
        (3, 1, SLOW_ROLLOUTS, 0.001),
        (3, 3, SLOW_ROLLOUTS, 0.001),
        (3, 2, FAST_ROLLOUTS, 0.05),
    ],
)
def test_no_trained_token_is_older_than_max_staleness_and_every_slot_is_trained_once(
    tmp_path: Path, max_staleness: int, batches_ahead: int, engine: EngineBehaviour, train_s: float
) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=12, max_staleness=max_staleness, batches_ahead=batches_ahead)
        slow_to_load = replace(engine, load_s=0.05)
        learner = LearnerBehaviour(train_s=train_s)
        async with simulated_run(
            config, engines=(engine, slow_to_load), teachers=(EngineBehaviour(),) * 2, learner=learner
        ) as run:
            await run.pipeline.run()
            rows = run.folder.valid_metrics()
            staleness = [value for call in run.calls("train_step") for value in call["staleness"]]
            assert [row["step"] for row in rows] == list(range(1, 13))
            assert max(row["staleness/max"] for row in rows) == max(staleness) <= max_staleness
            assert min(staleness) >= 0
            assert max(staleness) > 0 or batches_ahead == 0, "the run is no test of the bound"
            assert sorted(run.trained_slots()) == list(range(96))
            assert sorted(run.prompts.issued) == list(range(96))

    run_virtually(scenario())


def test_a_synchronous_run_trains_slots_in_order_on_fresh_weights_and_scores_the_same_batches_each_time(
    tmp_path: Path,
) -> None:
    async def scenario(name: str, engine: EngineBehaviour) -> list[dict]:
        scores = tmp_path / f"{name}.jsonl"
        teacher = {"max_batch_tokens": 60, "max_calls_in_flight": 2}
        config = run_config(
            tmp_path, run_name=name, max_steps=6, max_staleness=0, num_samples_per_prompt=2, teacher=teacher
        )
        async with simulated_run(config, engines=(engine,) * 2, teachers=(EngineBehaviour(scores=scores),)) as run:
            await run.pipeline.run()
            for step, call in enumerate(run.calls("train_step")):
                assert call["slots"] == [slot for slot in range(8 * step, 8 * step + 8) for _ in range(2)]
                assert set(call["staleness"]) == {0}
        return read_rows(scores)

    first = run_virtually(scenario("first", EngineBehaviour()))
    second = run_virtually(scenario("second", SLOW_ROLLOUTS))
    assert first == second
    assert len(first) > 12


def test_a_frozen_learner_stops_the_start_of_slots_at_the_end_of_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("cluster.pool.SHUTDOWN_TIMEOUT_S", 0.5)
        config = run_config(tmp_path, max_staleness=3, batches_ahead=2)
        async with simulated_run(
            config, engines=(FAST_ROLLOUTS,) * 2, learner=LearnerBehaviour(freezes_at=3)
        ) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 3)
            await eventually(lambda: len(run.prompts.issued) >= (3 + 1 + 2) * 8)
            await asyncio.sleep(0.5)
            assert sorted(run.prompts.issued) == list(range((3 + 1 + 2) * 8))
            assert run.pipeline.slots.num_open == (1 + 2) * 8
            await _cancel(running)

    run_virtually(scenario())


def test_a_stalled_teacher_stops_the_rollouts_and_the_score_queue_stays_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        teacher = {"max_batch_tokens": 1}
        config = run_config(
            tmp_path, max_staleness=4, batches_ahead=4, rollout={"max_in_flight": 12}, teacher=teacher
        )
        async with simulated_run(
            config, engines=(FAST_ROLLOUTS,), teachers=(EngineBehaviour(score_s=NEVER_S),)
        ) as run:
            running = asyncio.create_task(run.pipeline.run())
            scoring = run.pipeline._scoring
            await eventually(lambda: scoring.num_queued == 2 * 8)
            await asyncio.sleep(0.5)
            assert scoring.num_queued == 2 * 8
            assert run.teacher.workers[0].num_calls == 2
            assert len(run.prompts.issued) <= (1 + 4) * 8
            await _cancel(running)

    run_virtually(scenario())


def test_stop_finishes_the_step_in_progress_saves_it_and_leaves_nothing_running(tmp_path: Path) -> None:
    async def scenario() -> None:
        aborts = tmp_path / "aborts.jsonl"
        engine = EngineBehaviour(token_s=5.3, aborts=aborts)
        config = run_config(tmp_path, max_steps=50, max_staleness=40, batches_ahead=10)
        async with simulated_run(config, engines=(engine,), learner=LearnerBehaviour(train_s=0.3)) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version == 1)
            await asyncio.sleep(0.1)
            run.pipeline.stop()
            start = now()
            await running
            version = run.pipeline.slots.version
            assert 1 <= version <= 2
            assert now() - start < 3
            assert [Path(call["path"]).name for call in run.calls("save_checkpoint")] == [f"step_{version}"]
            assert run.calls("export") == []
            await eventually(lambda: not other_tasks(), timeout_s=5)
            await eventually(lambda: read_rows(aborts), timeout_s=5)

    run_virtually(scenario())


def test_a_resumed_run_trains_every_remaining_slot_once(tmp_path: Path) -> None:
    config = run_config(tmp_path, max_staleness=3, checkpoint={"every_steps": 4, "asynchronous": False})

    async def cut_off() -> None:
        async with simulated_run(config, engines=(FAST_ROLLOUTS,) * 2) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 6)
            await _cancel(running)  # as a crash would: nothing is saved after step 4
            assert len(valid_ledger(run.folder.ledger)) > 4

    async def resumed() -> None:
        async with simulated_run(config, engines=(FAST_ROLLOUTS,) * 2, resume=True) as run:
            assert list(valid_ledger(run.folder.ledger)) == [1, 2, 3, 4]
            await run.pipeline.run()
            assert list(valid_ledger(run.folder.ledger)) == list(range(1, 11))
            assert sorted(run.trained_slots()) == list(range(80))
            assert [row["step"] for row in run.folder.valid_metrics()] == list(range(1, 11))
            assert {event["incarnation"] for event in run.events("weights_published")} == {0, 1}
            assert [event["step"] for event in run.events("resumed")] == [4]

    run_virtually(cut_off())
    run_virtually(resumed())


def test_a_run_resumed_with_another_batch_size_and_end_trains_every_slot_once(tmp_path: Path) -> None:
    """Ten steps of 8 slots until step 4, then of 3 until step 7; then the end is before where the run stands."""
    config = run_config(tmp_path, max_staleness=3, checkpoint={"every_steps": 4, "asynchronous": False})
    smaller = config.model_copy(update={"batch_size": 3, "max_steps": 7})

    async def cut_off() -> None:
        async with simulated_run(config, engines=(FAST_ROLLOUTS,) * 2) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 6)
            await _cancel(running)

    async def resumed(config: RunConfig, sizes: list[int]) -> None:
        async with simulated_run(config, engines=(FAST_ROLLOUTS,) * 2, resume=True) as run:
            assert run.prompts.num_slots == run.pipeline.slots.num_slots
            await run.pipeline.run()
            slots = [slots_of(uids) for uids in valid_ledger(run.folder.ledger).values()]
            assert [len(batch) for batch in slots] == sizes
            trained = sorted(run.trained_slots())
            assert len(set(trained)) == len(trained) == sum(sizes)
            assert trained[:30] == list(range(30))

    run_virtually(cut_off())
    run_virtually(resumed(smaller, [8, 8, 8, 8, 3, 3, 3]))
    run_virtually(resumed(smaller.model_copy(update={"max_steps": 5}), [8, 8, 8, 8, 3, 3, 3]))
    run_virtually(resumed(config.model_copy(update={"max_steps": 8}), [8, 8, 8, 8, 3, 3, 3, 8]))


def test_a_run_whose_last_checkpoint_does_not_fit_on_the_disk_trains_to_its_end_and_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=4, checkpoint={"every_steps": 2, "retry_steps": 1})
        async with simulated_run(config, learner=LearnerBehaviour(has_full_disk=True)) as run:
            failure = await run.failure()
            assert "step 4 is not saved" in str(failure)
            assert "No space left on device; there is none" in str(failure)
            assert sorted(run.trained_slots()) == list(range(32))
            assert [row["step"] for row in run.events("checkpoint_failed")] == [2, 3, 4]
            assert len(run.calls("export")) == 1
            assert list(run.folder.checkpoints.iterdir()) == []
            await eventually(lambda: not other_tasks(), timeout_s=5)

    run_virtually(scenario())


def test_a_metrics_row_holds_every_documented_key_and_the_run_ends_with_checkpoint_and_export(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        rows: list[dict] = []
        async with simulated_run(run_config(tmp_path, max_steps=3)) as run:
            run.pipeline.on_step(rows.append)
            await run.pipeline.run()
            assert run.folder.valid_metrics() == rows
            assert [name for row in rows for name in METRICS if name not in row] == []
            assert [Path(call["path"]).name for call in run.calls("save_checkpoint")] == ["step_3"]
            assert [call["path"] for call in run.calls("export")] == [str(run.folder.export)]
            assert {"weights_published", "weights_loaded", "worker_started", "checkpoint"} <= {
                row["event"] for row in read_rows(run.folder.events)
            }
            await eventually(lambda: not other_tasks(), timeout_s=5)

    run_virtually(scenario())


def test_an_update_is_reported_by_its_parts_in_events_and_metrics(tmp_path: Path) -> None:
    parts = {"fetch_s", "check_s", "pause_s", "load_s", "verify_s"}

    async def scenario() -> None:
        async with simulated_run(run_config(tmp_path, max_steps=3)) as run:
            await run.pipeline.run()
            for event in run.events("weights_loaded"):
                assert event.keys() > parts | {"publish_s", "stopped_s", "golden_difference"}
                assert event["stopped_s"] == event["pause_s"] + event["load_s"] + event["verify_s"]
                assert event["seconds"] > 0
                assert event["bytes_fetched"] == 64
            assert {event["bytes"] for event in run.events("weights_published")} == {64}
            for row in run.folder.valid_metrics():
                assert row.keys() > {f"time/{part}" for part in parts | {"publish_s", "stopped_s", "update_s"}}
                assert (row["weights/bytes"], row["weights/bytes_fetched"]) == (64, 64)
                assert row["weights/difference_bytes"] == 0
                assert row["time/update_s"] > 0

    run_virtually(scenario())


async def _cancel(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait({running}, timeout=5)
    assert running.cancelled()
