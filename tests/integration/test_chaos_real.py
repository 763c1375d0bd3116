"""Workers and nodes of runs with real engines are killed and frozen: nothing is lost, nothing is trained twice."""

from pathlib import Path

import pytest

from tests.integration.chaos_run import (
    TWO_OF_EACH,
    chaos,
    check_report,
    drain_and_check,
    freeze,
    hurt,
    kill_engine,
    run_under_fire,
)

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow, pytest.mark.chaos]

QUICK_HEALTH = {"health.heartbeat_s": 1, "health.suspect_after_s": 3, "health.dead_after_s": 8}


def test_five_kills_of_each_kind_of_worker_lose_nothing(tmp_path: Path) -> None:
    with run_under_fire(tmp_path, **TWO_OF_EACH) as run:
        numbers = chaos(run, "rollout,teacher,learner", every_s=12, duration_s=182)
        check_report(numbers, {"rollout": 5, "teacher": 5, "learner": 5})
        drain_and_check(run)


def test_a_frozen_worker_of_each_kind_is_found_in_time_and_replaced(tmp_path: Path) -> None:
    with run_under_fire(tmp_path, **TWO_OF_EACH, **QUICK_HEALTH) as run:
        names = ("teacher-0", "learner-1", "rollout-0")
        found = hurt(run, names, freeze)
        for name in names:
            assert 4 < found[name] < 8 + 10, "8 s after the last answer; a busy machine answers late"
            [died] = [row for row in run.events("worker_died") if row["worker"] == name]
            assert died["reason"] == "no answer to heartbeats for 8 s"
        drain_and_check(run)


def test_an_engine_that_dies_within_a_living_worker_is_found_and_replaced(tmp_path: Path) -> None:
    """vLLM's model runs in a child process here, as with several GPUs."""
    apart = "{distributed_executor_backend: mp}"
    engines = {f"{role}.engine.extra": apart for role in ("rollout", "teacher")}
    with run_under_fire(tmp_path, **TWO_OF_EACH | {"learner.num_workers": 1}, **engines) as run:
        for _ in range(5):
            hurt(run, ("rollout-0", "teacher-0"), kill_engine)
        drain_and_check(run)
        for role in ("rollout", "teacher"):
            died = [row["reason"] for row in run.events("worker_died") if row["worker"].startswith(role)]
            assert len(died) == 5
            print(role, set(died))
