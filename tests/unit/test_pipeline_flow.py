"""What metrics rows say of queues and pools, and the advice: simulated engines in virtual time."""

from pathlib import Path
from typing import Any

import pytest

from commands.plan.run import run_virtually
from reporting.advisor import advise
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import run_config, simulated_run

pytestmark = pytest.mark.timeout(60)

FAST = EngineBehaviour(token_s=0.00011, score_s=0.001)
ONE_BY_ONE = {"model_path": "simulated", "max_batch_tokens": 1, "max_calls_in_flight": 1}
BATCH = 4


def middle_steps(path: Path, **behaviour: Any) -> tuple[dict[str, float], str]:
    """Means over steps 3 to 5 of a small run, and what limits them; from step 5 on no further slots start."""
    settings = behaviour.pop("settings", {})

    async def scenario() -> list[dict[str, Any]]:
        limits = {"batch_size": BATCH, "max_steps": 10, "max_staleness": 5, "batches_ahead": 5}
        config = run_config(path, **{**limits, **settings})
        engines: dict[str, Any] = {"engines": (FAST,), "teachers": (FAST,)} | behaviour
        async with simulated_run(config, **engines) as run:
            await run.pipeline.run()
            return run.folder.valid_metrics()[2:5]

    rows = run_virtually(scenario())
    advice = advise(rows)
    assert advice is not None
    numbers = [key for key, value in rows[-1].items() if isinstance(value, int | float)]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in numbers}
    assert all(0 <= means[key] <= 1 for key in means if key.startswith(("busy/", "used/", "queued/")))
    pressures = [means[key] for key in means if key.startswith("backpressure/")]
    assert all(0 <= seconds <= 1.5 * means["time/step_s"] for seconds in pressures)
    return means, advice.limit


def test_a_slow_teacher_is_busy_lets_rollouts_wait_and_its_full_queue_holds_their_streams_up(
    tmp_path: Path,
) -> None:
    settings = {"teacher": ONE_BY_ONE}
    means, limit = middle_steps(tmp_path, teachers=(EngineBehaviour(score_s=0.2),), settings=settings)
    assert limit == "teacher"
    assert means["wait/teacher_s"] > 5 * 0.2, "most of the 8 rollouts that fill the queue are before it"
    assert means["backpressure/teacher_s"] > 0.3 * means["time/step_s"]
    assert means["busy/teacher"] > 0.8
    assert means["queued/teacher"] > 0.8
    assert means["wait/learner_s"] < 4 * 0.2 + 0.5
    assert 1.0 < means["slots/teacher"] <= 6.0, "five per second at best"


def test_a_slow_learner_lets_scored_slots_wait_and_holds_rollout_workers_up(tmp_path: Path) -> None:
    means, limit = middle_steps(tmp_path, learner=LearnerBehaviour(train_s=0.5))
    assert limit == "learner"
    assert means["wait/learner_s"] > 2 * 0.5, "a window of six batches waits for it"
    assert means["wait/teacher_s"] < 0.3
    assert means["backpressure/learner_s"] > 0.3 * means["time/step_s"]
    assert means["busy/learner"] > 0.7
    assert means["busy/rollout"] < 0.6


def test_slow_rollout_workers_that_are_full_let_slots_wait(tmp_path: Path) -> None:
    slow = EngineBehaviour(token_s=0.019)
    means, limit = middle_steps(tmp_path, engines=(slow,), settings={"rollout": {"max_in_flight": 1}})
    assert limit == "rollout"
    assert means["wait/rollout_s"] > 5 * 0.2
    assert min(means["queued/rollout"], means["used/rollout"], means["busy/rollout"]) > 0.6
    assert means["wait/teacher_s"] < 0.3


def test_slow_rollouts_on_workers_with_capacity_are_limited_by_the_start_window(tmp_path: Path) -> None:
    slow = EngineBehaviour(token_s=0.048)
    means, limit = middle_steps(tmp_path, engines=(slow,), settings={"batches_ahead": 0})
    assert limit == "window"
    assert means["used/rollout"] < 0.1
    assert means["wait/rollout_s"] < 0.3


def test_a_slow_reference_holds_the_teachers_up(tmp_path: Path) -> None:
    settings = {"reference": ONE_BY_ONE, "teacher": ONE_BY_ONE}
    scorers = {"reference": (EngineBehaviour(score_s=0.2),)}
    means, limit = middle_steps(tmp_path, scorers=scorers, settings=settings)
    assert limit == "reference"
    assert means["wait/reference_s"] > 5 * 0.2
    assert means["backpressure/reference_s"] > 0.2 * means["time/step_s"]
    assert means["busy/reference"] > 0.8
