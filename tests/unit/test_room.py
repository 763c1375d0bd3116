"""Slots go where the most room is."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.room import Room
from cluster.workers import Worker

FIRST, SECOND = Worker("rollout-0"), Worker("rollout-1")


@given(st.lists(st.integers(-2, 6), max_size=8))
def test_every_place_is_given_once_and_always_where_the_most_room_is(slots: list[int]) -> None:
    left = {Worker(f"rollout-{i}"): number for i, number in enumerate(slots)}
    room = Room(left)
    assert room.total == sum(max(0, number) for number in slots)
    taken = Counter[Worker]()
    while room.total:
        worker = room.take()
        assert left[worker] == max(left.values())
        left[worker] -= 1
        taken[worker] += 1
    assert all(number <= 0 for number in left.values())
    with pytest.raises(IndexError):
        room.take()


def test_a_worker_is_avoided_while_there_is_another() -> None:
    room = Room({FIRST: 3, SECOND: 1})
    assert room.take(avoid=FIRST) is SECOND
    assert [room.take(avoid=FIRST) for _ in range(3)] == [FIRST] * 3


def test_of_two_with_equal_room_the_first_is_taken_first() -> None:
    room = Room({FIRST: 2, SECOND: 2})
    assert [room.take() for _ in range(4)] == [FIRST, SECOND, FIRST, SECOND]
