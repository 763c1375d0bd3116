"""Which engine a slot starts on: the one with most free slots; a suspicious slot alone, on one reserved for it."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.worker import Worker
from controller.rollouts import GENERATING, ISOLATED_AFTER, FreeSlots, Isolation

FIRST, SECOND = Worker("rollout-0"), Worker("rollout-1")


@given(st.lists(st.integers(-2, 6), max_size=8))
def test_every_place_is_given_once_and_always_where_most_capacity_is_free(slots: list[int]) -> None:
    left = {Worker(f"rollout-{i}"): number for i, number in enumerate(slots)}
    free = FreeSlots(left)
    for _ in range(sum(max(0, number) for number in slots)):
        worker = free.take()
        assert worker is not None
        assert left[worker] == max(left.values())
        left[worker] -= 1
    assert all(number <= 0 for number in left.values())
    assert free.take() is None


def test_a_worker_to_be_avoided_gets_nothing_even_if_it_alone_has_capacity() -> None:
    free = FreeSlots({FIRST: 3, SECOND: 1})
    assert free.take(avoid=FIRST) is SECOND
    assert free.take(avoid=FIRST) is None
    assert [free.take() for _ in range(4)] == [FIRST, FIRST, FIRST, None]


def test_of_two_with_equal_capacity_the_first_is_taken_first() -> None:
    free = FreeSlots({FIRST: 2, SECOND: 2})
    assert [free.take() for _ in range(4)] == [FIRST, SECOND, FIRST, SECOND]


SUSPICIOUS, OTHER = 1, 2


def isolation() -> Isolation:
    return Isolation(lambda slot: ISOLATED_AFTER if slot == SUSPICIOUS else 0)


def test_the_least_loaded_engine_is_reserved_while_a_suspicious_slot_may_start() -> None:
    busy, free = Worker("rollout-0", num_slots=2), Worker("rollout-1")
    chosen = isolation()
    chosen.reserve([OTHER], [busy, free])
    assert chosen.worker is None
    chosen.reserve([OTHER, SUSPICIOUS], [busy, free])
    assert chosen.worker is chosen.take() is free


def test_a_suspicious_slot_waits_for_the_end_of_the_stream_before_it_and_not_for_a_load_of_weights() -> None:
    worker = Worker("rollout-0")
    chosen = isolation()
    chosen.reserve([SUSPICIOUS], [worker])
    worker.uses[GENERATING] = 1  # every slot has come, and its end has not
    assert chosen.take() is None
    worker.uses[GENERATING] = 0
    worker.uses["load weights"] = 1
    assert chosen.take() is worker
