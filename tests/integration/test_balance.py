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
from records.files import read_rows
from settings.run import RunConfig
from tests.integration.simulated import EngineBehaviour, LearnerBehaviour
from tests.integration.simulated_run import SimulatedRun, eventually, other_tasks, run_config, simulated_run

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("local_ray")]

RESPONSE_S, SCORE_S = 0.8, 2.0
"""A rollout worker has 4 slots in flight, 5 per second; a teacher 2, 1 per second: five times as slow."""

ENGINE = EngineBehaviour(fastest_s=RESPONSE_S, slowest_s=RESPONSE_S)
TEACHER = EngineBehaviour(score_s=SCORE_S)
BATCH = 4
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
        learner = LearnerBehaviour(train_s=0.02)
        async with simulated_run(config, engines=[ENGINE], teachers=[TEACHER] * 5, learner=learner) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: run.pipeline.slots.version >= 4)
            rate = await _rate(run, 20.0)
            run.pipeline.stop()
            await asyncio.wait_for(running, 30)
            return rate

    async def scenario(best: float) -> None:
        config = balanced_config(tmp_path, "balanced", **BALANCE)
        learner = LearnerBehaviour(train_s=0.02)
        async with simulated_run(config, engines=[ENGINE] * 5, teachers=[TEACHER], learner=learner) as run:
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


def _check_events(run: SimulatedRun) -> None:
    """Every change has its reason and numbers, and no worker failed to find capacity."""
    for event in run.events("balanced"):
        assert event["to"]["teacher"] > event["from"]["teacher"]
        assert "teacher" in event["reason"]
        assert event["numbers"]["pools"]["teacher"]["is_full"]
        assert sum(event["to"].values()) <= 6
    assert {event["reason"][:8] for event in run.events("scaled")} == {"balance:"}
    assert run.events("worker_not_started") == run.events("nodes_requested") == []
    assert sorted(run.trained_slots()) == sorted({*run.trained_slots()})


async def _rate(run: SimulatedRun, seconds: float) -> float:
    """Slots trained per second over the fastest ten steps in a row of a while: other work may slow the machine."""
    num_steps = run.pipeline.slots.version
    await asyncio.sleep(seconds)
    ends = [row["time_s"] for row in read_rows(run.folder.metrics)][num_steps:]
    return BATCH * 10 / min(last - first for first, last in zip(ends, ends[10:], strict=False))


def _counts(run: SimulatedRun) -> Sequence[int]:
    return [len(run.rollout.healthy), len(run.teacher.healthy)]


def test_nodes_are_asked_for_where_there_is_no_capacity_and_the_request_is_withdrawn_at_the_end(
    tmp_path: Path,
) -> None:
    class Growing:
        """A cluster without capacity that can be asked for more; no node comes."""

        may_grow = True

        def __init__(self) -> None:
            self.requests: list[list[dict[str, float]]] = []

        def free(self) -> dict[str, float]:
            return {}

        def request(self, bundles: Sequence[dict[str, float]]) -> None:
            self.requests.append([*bundles])

    async def scenario() -> None:
        asked = Growing()
        limits = {"rollout": {"max_workers": 1}, "teacher": {"max_workers": 3}, "every_s": 0.5, "cooldown_s": 0.2}
        config = run_config(
            tmp_path,
            **{"batch_size": 4, "max_steps": 2000, "max_staleness": 2, "balance": BALANCE | limits},
            teacher={"model_path": "simulated", "max_batch_tokens": 1, "max_calls_in_flight": 1},
        )
        teachers = [EngineBehaviour(score_s=0.2)]
        async with simulated_run(config, engines=[EngineBehaviour()], teachers=teachers, cluster=asked) as run:
            running = asyncio.create_task(run.pipeline.run())
            await eventually(lambda: running.done() or _counts(run) == [1, 3], timeout_s=90)
            run.pipeline.stop()
            await asyncio.wait_for(running, 30)
            [event] = run.events("nodes_requested")
            assert event["workers"] == {"rollout": 1, "teacher": 3}
            assert asked.requests == [[{"CPU": 0.01}] * 5, []]  # the learner, a rollout worker, three teachers

    asyncio.run(scenario())


def test_a_request_reaches_the_autoscaler_of_ray_and_an_empty_one_withdraws_it() -> None:
    cluster = RayCluster(may_grow=True)
    cluster.request([{"CPU": 0.5, "teacher": 1.0}] * 2)
    stored = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    assert stored == b'[{"CPU": 0.5, "teacher": 1.0}, {"CPU": 0.5, "teacher": 1.0}]'
    cluster.request([])
    assert _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) == b"[]"
    assert cluster.free()["CPU"] <= 16
