"""What limits a run, from rows of steps: the stage is named with its share of the time, and what to do."""

from typing import Any

import pytest

from reporting.advisor import Advice, advise


def row(**values: Any) -> dict[str, Any]:
    """A step of 10 s; the learner trains 1 s and publishes 1 s unless told otherwise."""
    names = {"rollout": "time/rollout_wait_s", "score": "time/score_wait_s", "train": "time/train_s"}
    given = {names.get(name, name.replace("__", "/")): value for name, value in values.items()}
    times = {"time/step_s": 10.0, "time/rollout_wait_s": 0.0, "time/score_wait_s": 0.0, "time/train_s": 1.0}
    return times | {"time/publish_s": 1.0, "queue/rollouts": 0, "queue/teacher": 0, "staleness/max": 0.0} | given


def advice_on(*rows: dict[str, Any]) -> Advice:
    """What is advised after these steps."""
    advice = advise(rows)
    assert advice is not None
    return advice


def test_no_steps_or_no_times_give_no_advice() -> None:
    assert advise([]) is None
    assert advise([{"step": 1}]) is None


def test_waiting_for_scores_is_teacher_bound_with_the_remedy() -> None:
    advice = advice_on(row(score=6.2, rollout=1.8, queue__rollouts=5, staleness__max=1.0))
    assert advice.text.endswith("add one teacher worker or raise teacher.max_batch_tokens")
    assert (advice.limit, advice.short) == ("teacher", "teacher-bound 62 %")
    assert advice.share == pytest.approx(0.62)


def test_the_scorer_with_the_longest_queue_is_named() -> None:
    queues = {"queue/rollouts": 9, "queue/teacher": 2, "queue/teacher-code": 7, "queue/reference": 0}
    advice = advice_on(row(score=6) | queues, row(score=6) | queues | {"queue/teacher": 4})
    assert advice.limit == "teacher-code"
    assert "raise teachers.code.max_batch_tokens" in advice.text
    advice = advice_on(row(score=6) | queues | {"queue/reference": 30})
    assert advice.limit == "reference"


def test_teachers_that_keep_up_in_an_overlapping_run_are_not_blamed() -> None:
    busy = {"score": 5.0, "rollout": 2.0}
    overlapping, synchronous = advice_on(row(**busy, staleness__max=2.0)), advice_on(row(**busy))
    assert (overlapping.short, synchronous.limit) == ("rollout-bound 70 %", "teacher")


def test_the_learner_and_pauses_limit_too() -> None:
    advice = advice_on(row(train=8.0), row(train=6.0, rollout=2.0))
    assert (advice.limit, advice.share) == ("learner", pytest.approx(0.8))
    assert "do not help" in advice.text
    advice = advice_on(row())
    assert (advice.limit, advice.share) == ("pauses", pytest.approx(0.8))


FLOW = {
    **{"wait/teacher_s": 3.25, "wait/rollout_s": 1.5, "wait/learner_s": 0.25},
    **{"backpressure/teacher_s": 3.0, "backpressure/learner_s": 0.0},
    **{"busy/teacher": 1.0, "busy/rollout": 0.75, "used/rollout": 0.75, "used/teacher": 1.0, "busy/learner": 0.2},
    **{"queued/teacher": 0.9, "queued/rollout": 0.0},
}


def text_of(**values: Any) -> str:
    return advice_on(row(staleness__max=1.0, **values)).text


def test_a_full_teacher_is_named_with_how_long_slots_wait_and_whom_it_holds_up() -> None:
    assert text_of(score=6.2, rollout=1.8, **FLOW) == (
        "teacher-bound: 62 % of the learner's time is waiting for scores; add one teacher worker or raise "
        "teacher.max_batch_tokens (a slot waits 3.25 s for it, it is busy 100 % of the time, its full queue held "
        "the rollout workers up 30 % of the time)"
    )
    assert "held" not in text_of(score=6.2, rollout=1.8, **FLOW | {"backpressure/teacher_s": 0.4})


def test_a_reference_holds_teachers_up() -> None:
    reference = {"queue/reference": 0, "wait/reference_s": 2.0, "busy/reference": 1.0, "queued/reference": 1.0}
    text = text_of(score=6.2, rollout=1.8, **FLOW, **reference, **{"backpressure/reference_s": 5.0})
    assert text.startswith("reference-bound: 62 %")
    assert text.endswith("its full queue held the teachers up 50 % of the time)")


def test_rollouts_that_do_not_wait_for_a_teacher_make_the_run_rollout_bound_however_busy_the_teacher_is() -> None:
    calm = FLOW | {"queued/teacher": 0.1, "queue/rollouts": 9}
    text = text_of(score=5.0, rollout=2.0, **calm)
    assert text.startswith("rollout-bound: 70 %")
    assert text.endswith("add rollout workers (a slot waits 1.5 s for it, it is busy 75 % of the time)")


def test_workers_that_are_not_full_while_no_slot_may_start_make_the_run_window_bound() -> None:
    calm = FLOW | {"queued/teacher": 0.1, "used/rollout": 0.2, "backpressure/learner_s": 2.0}
    text = text_of(score=5.0, rollout=2.0, **calm)
    assert text.startswith("window-bound: 70 %")
    assert "only 20 % full; raise batches_ahead" in text
    assert text_of(score=5.0, rollout=2.0, **calm | {"queued/rollout": 0.9}).startswith("rollout-bound: 70 %")
