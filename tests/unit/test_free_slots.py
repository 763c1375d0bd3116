"""Slots go where most capacity is free."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.worker import Worker
from controller.rollouts import FreeSlots

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
