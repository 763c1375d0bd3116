"""What a run tells of itself: health, evaluations, phases of the start, time left."""

from typing import Any

import pytest

from reporting.live.event_words import MAX_REASON, in_words, role_of_event
from reporting.live.monitor import Monitor, clock_text, time_left_s, waited_for
from reporting.live.prometheus import samples_of_event
from settings.run import RunConfig
from tests.unit.metric_rows import metrics_row
from tests.unit.run_status import pool, worker

CONFIG = RunConfig.model_validate(
    {
        **{"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}},
        **{"max_steps": 20, "evaluation": {"every_steps": 5}},
    }
)


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def row(step: int, step_s: float = 2.0, work_s: float = 2.0) -> dict[str, Any]:
    """A metrics row whose learner trained for `work_s` of the step's time."""
    waits = dict.fromkeys(("time__rollout_wait_s", "time__score_wait_s", "time__publish_s"), 0.0)
    return metrics_row(step, time_s=1000.0, time__step_s=step_s, time__train_s=work_s, **waits)


def test_the_time_left_is_that_of_the_steps_left() -> None:
    rows = [row(step, step_s=2.0) for step in range(1, 6)]
    assert time_left_s(rows, max_steps=20, evaluate_every=0) == pytest.approx(15 * 2.0)
    assert time_left_s(rows, max_steps=5, evaluate_every=0, evaluation_s=7.0) == 7.0
    assert time_left_s([], max_steps=5, evaluate_every=0) is None


def test_evaluations_to_come_count_in_the_time_left_as_often_as_they_come() -> None:
    rows = [row(step) for step in range(2, 6)] + [row(6, step_s=32.0)]  # 30 s of evaluation after step 5
    left = time_left_s(rows, max_steps=20, evaluate_every=5, evaluation_s=30.0)
    assert left == pytest.approx(14 * 2.0 + 2 * 30.0 + 30.0)  # after steps 10 and 15, and at the end


@pytest.mark.timeout(5)
def test_the_time_left_of_the_longest_run_is_told_at_once() -> None:
    rows = [row(step) for step in range(2, 6)] + [row(6, step_s=32.0)]
    left = time_left_s(rows, max_steps=2**31 - 1, evaluate_every=5)
    assert left == pytest.approx((2**31 - 7) * 2.0 + 30.0 * ((2**31 - 2) // 5 - 1))


def test_checkpoints_between_steps_count_in_the_time_left() -> None:
    rows = [row(1), row(2, step_s=6.0), row(3), row(4, step_s=6.0)]
    assert time_left_s(rows, max_steps=8, evaluate_every=0) == pytest.approx(4 * 4.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "0:07"), (723, "12:03"), (3723, "1:02:03"), (183_845, "2 d 3:04:05"), (-1, "0:00")]
)
def test_seconds_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_health_counts_deaths_restarts_and_suspects_by_role_and_forgets_old_ones_as_recent() -> None:
    clock = Clock()
    monitor = Monitor(CONFIG, clock=clock)
    monitor.event({"time": 1000.0, "event": "worker_suspect", "worker": "teacher-code-0", "reason": "silent"})
    monitor.event({"time": 1000.0, "event": "worker_died", "worker": "rollout-1", "reason": "killed"})
    clock.now = 2000.0
    monitor.event({"time": 1990.0, "event": "worker_died", "worker": "rollout-2", "reason": "killed"})
    monitor.event({"time": 1995.0, "event": "worker_restarted", "worker": "rollout-2", "seconds": 3.0})
    monitor.event({"time": 1999.0, "event": "weights_loaded", "worker": "rollout-2"})
    health = monitor.status({}, is_running=True)["health"]
    assert health["total"]["deaths"] == {"rollout": 2}
    assert health["recent"]["deaths"] == {"rollout": 1}
    assert health["total"]["suspects"] == {"teacher-code": 1}
    assert health["recent"]["suspects"] == {}
    assert (health["newest"], health["newest_age_s"]) == ("rollout-2 is back after 3.0 s", 5.0)


def test_an_evaluation_is_in_progress_until_it_is_done_and_the_last_accuracy_stays() -> None:
    clock = Clock()
    monitor = Monitor(CONFIG, evaluations=[evaluated("student_before", 0, 0.25)], clock=clock)
    monitor.event({"time": 1000.0, "event": "evaluation_started", "model": "student", "step": 5})
    clock.now = 1004.0
    status = monitor.status({}, is_running=True)
    assert status["evaluating"] == [{"model": "student", "step": 5, "seconds": 4.0}]
    assert status["evaluations"] == [
        {"model": "student", "benchmark": "b", "step": 0, "k": 8, "avg_at_k": 0.25},
    ]
    monitor.evaluation(evaluated("student", 5, 0.5))
    monitor.event({"time": 1004.0, "event": "evaluated", "model": "student", "step": 5, "seconds": 4.0})
    monitor.step(row(5))
    monitor.event({"time": 1004.0, "event": "evaluation_started", "model": "teacher", "step": 5})
    monitor.event({"time": 1004.0, "event": "evaluation_abandoned", "model": "teacher", "step": 5})
    status = monitor.status({}, is_running=True)
    assert status["evaluating"] == []
    assert [each["avg_at_k"] for each in status["evaluations"]] == [0.5]
    assert status["left_s"] == pytest.approx(15 * 2.0 + 4.0)


def evaluated(model: str, step: int, accuracy: float) -> dict[str, Any]:
    """A row of `eval.jsonl`."""
    return {"step": step, "model": model, "benchmark": "b", "n": 8, "k": 8, "avg_at_k": accuracy}


def test_tokens_per_second_are_means_over_the_time_of_the_recent_steps() -> None:
    monitor = Monitor(CONFIG, clock=Clock())
    monitor.step(row(1, step_s=1.0) | {"throughput/rollout": 0.0, "throughput/learner": 10.0})
    monitor.step(row(2, step_s=3.0) | {"throughput/rollout": 40.0, "throughput/learner": 10.0})
    rates = monitor.status({}, is_running=True)["rates"]
    assert (rates["rollout"], rates["learner"]) == (30.0, 10.0)


def test_rows_from_before_a_fall_back_do_not_count() -> None:
    monitor = Monitor(CONFIG, clock=Clock())
    for step in range(1, 11):
        monitor.step(row(step, step_s=50.0))
    monitor.step(row(5, step_s=2.0))
    assert monitor.status({}, is_running=True)["left_s"] == pytest.approx(15 * 2.0)


def test_the_phases_of_a_start_follow_one_another_and_each_has_its_own_seconds() -> None:
    clock = Clock()
    monitor = Monitor(CONFIG, clock=clock)

    def phase(*workers: dict[str, Any], is_running: bool = False) -> tuple[str, float]:
        pools = {"rollout": pool(*workers, planned=2)}
        waiting = monitor.status(pools, is_running=is_running)["waiting"]
        return waiting["phase"], waiting["seconds"]

    assert phase() == ("placing", 0.0)
    assert waited_for({"rollout": pool(worker("rollout-0"), planned=2)}, is_running=False)[1] == "rollout (1 of 2)"
    clock.now += 9
    assert phase(worker("rollout-0", pid=None)) == ("placing", 9.0)
    both = [worker("rollout-0"), worker("rollout-1", pid=None)]
    assert phase(*both) == ("starting engines", 0.0)
    clock.now += 30
    assert phase(*both) == ("starting engines", 30.0)
    both[1]["pid"] = 8
    assert phase(*both) == ("restoring", 0.0)
    assert phase(*both, is_running=True) == ("loading weights", 0.0)
    for each in both:
        each["version"] = 0
    monitor.event({"time": 1000.0, "event": "evaluation_started", "model": "student_before", "step": 0})
    assert phase(*both, is_running=True)[0] == "evaluating"
    monitor.event({"time": 1000.0, "event": "evaluated", "model": "student_before", "step": 0, "seconds": 1.0})
    assert phase(*both, is_running=True)[0] == "first batch"
    monitor.step(row(1))
    assert monitor.status({"rollout": pool(*both)}, is_running=True)["waiting"] is None


def test_events_are_told_in_words_whatever_they_lack() -> None:
    lost = {"event": "learner_lost", "step": 7, "reason": "rank 0\n  died"}
    assert in_words(lost) == "the learner is lost at step 7: rank 0 died"
    assert in_words({"event": "something_new", "reason": "a"}) == "something new: a"
    assert in_words({"event": "worker_died"}) == "? has died"
    assert len(in_words(lost | {"reason": "x" * 9999})) < MAX_REASON + 40
    assert role_of_event(lost) == "learner"


def test_the_status_tells_of_the_usual_step_of_progress_and_of_the_newest_checkpoint() -> None:
    clock = Clock()
    monitor = Monitor(CONFIG, clock=clock)
    before = monitor.status({}, is_running=False)
    assert (before["started"], before["progressed"], before["usual_step_s"]) == (1000.0, 1000.0, None)
    assert before["checkpoint"] == {"step": 0, "every_steps": 50}
    for step, seconds in enumerate((2.0, 30.0, 3.0), start=1):
        monitor.step(row(step, seconds) | {"time_s": 1000.0 + 10 * step})
    monitor.event({"time": 1030.0, "event": "checkpoint", "step": 3})
    after = monitor.status({}, is_running=True)
    assert (after["started"], after["progressed"], after["usual_step_s"]) == (1000.0, 1030.0, 3.0)
    assert after["checkpoint"] == {"step": 3, "every_steps": 50}


def test_a_learner_that_is_back_is_progress_and_a_fall_back_is_to_the_checkpoint_it_names() -> None:
    clock = Clock()
    monitor = Monitor(CONFIG, clock=clock)
    monitor.step(row(1))
    clock.now = 1500.0
    monitor.event({"time": 1499.0, "event": "resumed", "step": 0, "reason": "the learner was lost"})
    monitor.event({"time": 1500.0, "event": "learner_restarted", "step": 0, "seconds": 40.0})
    status = monitor.status({}, is_running=True)
    assert (status["progressed"], status["usual_step_s"], status["checkpoint"]["step"]) == (1500.0, None, 0)


def test_a_learner_that_dies_is_one_death_however_it_is_found_out() -> None:
    for found in (["worker_died"], ["worker_died", "worker_died"], []):
        monitor, counted = Monitor(CONFIG, clock=Clock()), 0.0
        for event in (
            *({"event": name, "time": 999.0, "worker": f"learner-{rank}"} for rank, name in enumerate(found)),
            {"event": "learner_lost", "time": 999.0, "step": 3},
            {"event": "worker_died", "time": 999.0, "worker": "rollout-1"},
        ):
            monitor.event(event)
            counted += sum(sample.value for sample in samples_of_event(event) if sample.name == "deaths_total")
        health = monitor.status({}, is_running=True)["health"]
        assert health["total"]["deaths"] == health["recent"]["deaths"] == {"learner": 1, "rollout": 1}
        assert counted == 2
