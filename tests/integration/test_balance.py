"""The pools balance themselves while a run streams: real workers on real Ray, on simulated engines."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get

from cluster.autoscaling import RayCluster
from cluster.pool import Pool
from records.files import read_rows
from settings.run import RunConfig
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import FaultyRun, eventually, other_tasks, run_config, simulated_run

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("local_ray")]

RESPONSE_S, SCORE_S = 0.8, 1.0
"""A rollout worker has 4 slots in flight, 5 per second; a teacher 2, 1 per second: five times as slow."""

ENGINE = EngineBehaviour(token_s=RESPONSE_S / 10.5)
TEACHER = EngineBehaviour(score_s=SCORE_S)
BATCH = 4
ON_RAY: dict[str, Any] = {"pool_class": Pool, "cluster": RayCluster(may_grow=False)}
TWO_MINUTES_S = 120.0


def balanced_config(path: Path, name: str, **balance: Any) -> RunConfig:
    """Six workers fill the cluster, so that one has to go before another comes."""
    share = {"resources": {"num_cpus": 2.6}}
    return run_config(
        path,
        **{"run_name": name, "batch_size": BATCH, "max_steps": 2000, "max_staleness": 6, "batches_ahead": 5},
        rollout=share | {"max_in_flight": 4},
        teacher=share | {"model_path": "simulated", "max_batch_tokens": 1, "max_calls_in_flight": 2},
        balance=balance,
    )


BALANCE = {
    **{"enabled": True, "every_s": 2.5, "readings": 2, "cooldown_s": 2.0},
    **{"rollout": {"max_workers": 5}, "teacher": {"max_workers": 5}},
}


@pytest.mark.slow
def test_a_run_that_starts_with_the_wrong_ratio_comes_to_the_best_one_and_stays(tmp_path: Path) -> None:
    async def static() -> float:
        config = balanced_config(tmp_path, "static")
        given: dict[str, Any] = ON_RAY | {"learner": LearnerBehaviour(train_s=0.02)}
        async with simulated_run(config, engines=[ENGINE], teachers=[TEACHER] * 5, **given) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 4)
            rate = await _rate(run, 20.0)
            run.pipeline.stop()
            await asyncio.wait_for(running, 30)
            return rate

    async def scenario(best: float) -> None:
        config = balanced_config(tmp_path, "balanced", **BALANCE)
        given: dict[str, Any] = ON_RAY | {"learner": LearnerBehaviour(train_s=0.02)}
        async with simulated_run(config, engines=[ENGINE] * 5, teachers=[TEACHER], **given) as run:
            started = time.monotonic()
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: running.done() or _counts(run) == [1, 5], timeout_s=TWO_MINUTES_S)
            reached_s = time.monotonic() - started
            await asyncio.sleep(4.0)
            num_changes, first = len(run.events("balanced")), run.events("balanced")[0]["numbers"]["slots_per_s"]
            rate = await _rate(run, 25.0)
            print(f"static {best:.2f}, start {first:.2f}, balanced {rate:.2f} slots/s after {reached_s:.1f} s")
            print([(event["from"], event["to"], event["reason"]) for event in run.events("balanced")])
            run.pipeline.stop()
            await asyncio.wait_for(running, 30)
            assert reached_s + 4 < TWO_MINUTES_S
            assert rate >= 0.9 * best
            assert first < 0.5 * best, "the start was no wrong ratio"
            assert len(run.events("balanced")) == num_changes <= 4
            _check_events(run)
            await eventually(lambda: not other_tasks(), timeout_s=5)

    asyncio.run(scenario(asyncio.run(static())))


def _check_events(run: FaultyRun) -> None:
    """Every change has its reason and numbers, and no worker failed to find capacity."""
    for event in run.events("balanced"):
        assert event["to"]["teacher"] > event["from"]["teacher"]
        assert "teacher" in event["reason"]
        assert event["numbers"]["pools"]["teacher"]["is_full"]
        assert sum(event["to"].values()) <= 6
    assert {event["reason"][:8] for event in run.events("scaled")} == {"balance:"}
    assert run.events("worker_not_started") == run.events("nodes_requested") == []
    assert sorted(run.trained_slots()) == sorted({*run.trained_slots()})


async def _rate(run: FaultyRun, seconds: float) -> float:
    """Slots trained per second over the fastest ten steps in a row of a while: other work may slow the machine."""
    num_steps = run.pipeline.slots.version
    await asyncio.sleep(seconds)
    ends = [row["time_s"] for row in read_rows(run.folder.metrics)][num_steps:]
    return BATCH * 10 / min(last - first for first, last in zip(ends, ends[10:], strict=False))


def _counts(run: FaultyRun) -> Sequence[int]:
    return [len(run.rollout.healthy), len(run.teacher.healthy)]


async def test_a_request_reaches_the_autoscaler_of_ray_and_an_empty_one_withdraws_it() -> None:
    cluster = RayCluster(may_grow=True)
    await cluster.request([{"CPU": 0.5, "teacher": 1.0}] * 2)
    stored = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    assert stored == b'[{"CPU": 0.5, "teacher": 1.0}, {"CPU": 0.5, "teacher": 1.0}]'
    await cluster.request([])
    assert _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) == b"[]"
    assert (await cluster.free())["CPU"] <= 16
