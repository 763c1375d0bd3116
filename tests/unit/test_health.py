"""The health of a worker is judged by its answers alone, each kind of fault by its own measure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.health import NEXT_STATES, Health, Verdict, WorkerState, backoff_s
from settings.cluster import HealthConfig
from transport.notes import Heartbeat

LIMITS = HealthConfig(heartbeat_s=1.0, suspect_after_s=3.0, dead_after_s=10.0, stall_after_s=20.0)
IDLE, BUSY = Heartbeat(progress=7, is_working=False), Heartbeat(progress=7, is_working=True)


def health() -> Health:
    return Health(LIMITS, now=100.0)


def test_every_state_but_the_last_two_may_become_dead_and_the_last_is_final() -> None:
    assert NEXT_STATES.keys() == {*WorkerState}
    assert NEXT_STATES[WorkerState.RETIRED] == set()
    mortal = {*WorkerState} - {WorkerState.DEAD, WorkerState.RETIRED}
    assert all(WorkerState.DEAD in NEXT_STATES[state] for state in mortal)


def test_silence_makes_a_worker_first_suspect_and_then_dead() -> None:
    worker = health()
    looks = [worker.look(100.0 + seconds) for seconds in (0, 2.9, 3, 9.9, 10, 1000)]
    suspect, silent = Verdict.SUSPECT, Verdict.SILENT
    assert looks == [Verdict.FINE, Verdict.FINE, suspect, suspect, silent, silent]


def test_an_answer_ends_the_silence() -> None:
    worker = health()
    worker.hear(IDLE, 109.0)
    assert worker.look(111.9) is Verdict.FINE
    assert worker.look(112.0) is Verdict.SUSPECT


def test_an_engine_with_work_that_answers_without_progress_is_wedged() -> None:
    worker = health()
    for second in range(20):
        worker.hear(BUSY, 100.0 + second)
        assert worker.look(100.0 + second) is Verdict.FINE
    worker.hear(BUSY, 120.0)
    assert worker.look(120.0) is Verdict.WEDGED


@pytest.mark.parametrize("is_working", [True, False])
def test_an_engine_that_makes_tokens_or_has_no_work_is_not_wedged(is_working: bool) -> None:
    worker = health()
    for second in range(100):
        progress = second // 15 if is_working else 0
        worker.hear(Heartbeat(progress=progress, is_working=is_working), 100.0 + second)
        assert worker.look(100.0 + second) is Verdict.FINE


def test_the_controllers_own_standstill_is_no_silence_of_a_worker() -> None:
    worker = health()
    worker.forgive(500.0)
    assert worker.look(602.0) is Verdict.FINE
    assert worker.look(603.0) is Verdict.SUSPECT


def test_requests_that_succeed_elsewhere_speak_against_a_worker_until_it_serves_one() -> None:
    worker = health()
    assert [worker.blame() for _ in range(4)] == [False] * 4
    worker.succeed()
    assert [worker.blame() for _ in range(5)] == [False] * 4 + [True]


def test_restarts_wait_twice_as_long_each_time_and_are_bounded_until_a_request_is_served() -> None:
    worker = Health(HealthConfig(max_restarts=3, backoff_s=2.0, max_backoff_s=5.0), now=0.0)
    assert [worker.next_backoff_s() for _ in range(4)] == [2.0, 4.0, 5.0, None]
    worker.succeed()
    assert worker.next_backoff_s() == 2.0


def test_a_restart_for_which_there_was_no_capacity_does_not_count() -> None:
    worker = Health(HealthConfig(max_restarts=1), now=0.0)
    for _ in range(10):
        assert worker.next_backoff_s() is not None
        worker.excuse()
    assert worker.next_backoff_s() is not None
    assert worker.next_backoff_s() is None


@given(attempt=st.integers(1, 10_000), first=st.floats(0.001, 60), most=st.floats(60, 3600))
def test_no_wait_is_longer_than_the_longest(attempt: int, first: float, most: float) -> None:
    limits = HealthConfig(backoff_s=first, max_backoff_s=most)
    assert first <= backoff_s(limits, attempt) <= most


@given(
    answers=st.lists(st.tuples(st.floats(0, 2.5), st.integers(0, 3), st.booleans()), min_size=1, max_size=60),
    silence=st.floats(0, 100),
)
def test_a_worker_is_doubted_only_after_its_own_silence(
    answers: list[tuple[float, int, bool]], silence: float
) -> None:
    worker, now, quiet_since, progress = health(), 100.0, 100.0, -1
    for gap, new_progress, is_working in answers:
        now += gap
        worker.hear(Heartbeat(progress=new_progress, is_working=is_working), now)
        if new_progress != progress or not is_working:
            quiet_since, progress = now, new_progress
        assert worker.look(now) is (Verdict.WEDGED if now - quiet_since >= 20 else Verdict.FINE)
    verdict = worker.look(now + silence)
    assert (verdict is Verdict.SILENT) == (now + silence - now >= 10)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"heartbeat_s": 20.0}, "health.heartbeat_s < health.suspect_after_s < health.dead_after_s must hold"),
        ({"dead_after_s": 10.0}, "nearest valid: 5, 15, 60"),
        ({"backoff_s": 100.0}, "health.backoff_s must be <= health.max_backoff_s"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(settings: dict[str, float], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        HealthConfig(**settings)  # pyright: ignore[reportArgumentType]
