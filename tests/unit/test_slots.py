"""The rules of ``controller.slots`` on examples small enough to follow by hand."""

import time
from collections.abc import Callable, Iterable

import pytest

from controller.slots import Slots
from records.checkpoints import Frontier


def make_slots(
    batch_size: int = 2,
    max_steps: int = 10,
    max_staleness: int = 2,
    batches_ahead: int = 1,
    **frontier: object,
) -> Slots:
    return Slots(
        batch_size=batch_size,
        max_steps=max_steps,
        max_staleness=max_staleness,
        batches_ahead=batches_ahead,
        frontier=Frontier(**frontier),  # pyright: ignore[reportArgumentType]
    )


def start(slots: Slots, numbers: Iterable[int]) -> None:
    for slot in numbers:
        slots.start(slot, slots.version)


def finish(slots: Slots, numbers: Iterable[int]) -> None:
    for slot in numbers:
        slots.finish(slot)


def train_in_order(slots: Slots, num_batches: int) -> None:
    for _ in range(num_batches):
        batch = slots.startable(slots.batch_size)
        start(slots, batch)
        finish(slots, batch)
        slots.train(batch)


def test_window_is_one_batch_and_the_batches_ahead():
    slots = make_slots(batch_size=2, batches_ahead=1)
    assert slots.startable() == [0, 1, 2, 3]
    assert slots.startable(3) == [0, 1, 2]
    assert slots.startable(0) == []


def test_window_moves_by_one_batch_with_every_version():
    slots = make_slots(batch_size=2, batches_ahead=1)
    start(slots, [0, 1, 2, 3])
    finish(slots, [1, 3])
    assert slots.startable() == []
    slots.train([1, 3])
    assert slots.version == 1
    assert slots.startable() == [4, 5]


def test_no_slot_starts_beyond_the_last_step():
    slots = make_slots(batch_size=2, max_steps=3, max_staleness=5, batches_ahead=5)
    assert slots.startable() == [0, 1, 2, 3, 4, 5]


def test_engine_may_lag_by_the_staleness_that_waiting_does_not_use():
    slots = make_slots(max_staleness=3, batches_ahead=1)
    assert slots.minimum_engine_version == 0
    train_in_order(slots, 5)
    assert slots.minimum_engine_version == 3
    slots.start(10, engine_version=3)
    assert slots.deadline(10) == 6


def test_batch_takes_the_earliest_deadlines_then_the_lowest_numbers():
    slots = make_slots(batch_size=2, max_staleness=4, batches_ahead=2)
    start(slots, range(5))
    finish(slots, [1, 3])
    slots.train([1, 3])
    start(slots, [5, 6])
    finish(slots, [6, 5, 4, 2])
    assert slots.next_batch() == [2, 4]
    finish(slots, [0])
    assert slots.next_batch() == [0, 2]
    slots.train([0, 2])
    assert slots.next_batch() == [4, 5]


def test_fast_slots_overtake_a_straggler_until_it_is_due():
    slots = make_slots(batch_size=2, max_staleness=2, batches_ahead=1)
    start(slots, [0, 1, 2, 3])
    finish(slots, [1, 2])
    slots.train([1, 2])
    start(slots, [4, 5])
    finish(slots, [3, 4])
    slots.train([3, 4])
    start(slots, [6, 7])
    finish(slots, [5, 6])
    assert slots.deadline(0) == slots.version == 2
    assert slots.next_batch() is None
    assert slots.blocking() == [0]
    finish(slots, [0])
    assert slots.next_batch() == [0, 5]
    assert slots.blocking() == []


def test_batch_waits_if_the_slots_due_next_would_not_fit_into_the_next_batch():
    slots = make_slots(batch_size=1, max_staleness=2, batches_ahead=2)
    start(slots, [0, 1, 2])
    finish(slots, [2])
    assert slots.next_batch() == [2]
    slots.train([2])
    slots.start(3, engine_version=1)
    finish(slots, [3])
    assert slots.deadline(0) == slots.deadline(1) == 2
    assert slots.next_batch() is None
    assert slots.blocking() == [0, 1]
    finish(slots, [1])
    assert slots.next_batch() == [1]


def test_failed_slot_has_no_deadline_until_it_starts_again():
    slots = make_slots(batch_size=1, max_staleness=1, batches_ahead=1)
    start(slots, [0, 1])
    finish(slots, [1])
    slots.train([1])
    start(slots, [2])
    finish(slots, [2])
    assert slots.blocking() == [0]
    slots.reopen(0)
    assert slots.startable() == [0]
    assert slots.next_batch() == [2]
    start(slots, [0])
    assert slots.deadline(0) == 2
    assert slots.next_batch() == [2]


def test_finished_slot_whose_rollouts_are_lost_starts_again():
    slots = make_slots(batch_size=2)
    start(slots, [0, 1])
    finish(slots, [0, 1])
    slots.reopen(0)
    assert slots.next_batch() is None
    assert slots.startable() == [0, 2, 3]


def test_batch_stays_good_while_other_slots_start_and_finish():
    slots = make_slots(batch_size=2, max_staleness=1, batches_ahead=1)
    start(slots, [0, 2, 3])
    finish(slots, [2, 3])
    assert slots.next_batch() == [2, 3]
    start(slots, [1])
    finish(slots, [0, 1])
    slots.train([2, 3])
    assert slots.next_batch() == [0, 1]


def test_frontier_names_the_lowest_untrained_slot_and_the_trained_ones_above():
    slots = make_slots(batch_size=2)
    start(slots, [0, 1, 2, 3])
    finish(slots, [3, 1])
    slots.train([1, 3])
    assert slots.frontier() == Frontier(version=1, lowest_untrained=0, trained_above=(1, 3))
    finish(slots, [0, 2])
    slots.train([0, 2])
    assert slots.frontier() == Frontier(version=2, lowest_untrained=4)


def test_resumed_run_starts_every_untrained_slot_again():
    slots = make_slots(batch_size=2, version=1, lowest_untrained=0, trained_above=(1, 3))
    assert slots.version == 1
    assert slots.startable() == [0, 2, 4, 5]
    assert slots.num_open == 0


def test_resuming_with_fewer_batches_ahead_opens_no_more_than_the_smaller_window():
    slots = make_slots(batch_size=1, max_staleness=0, batches_ahead=0, version=1, trained_above=(2,))
    assert slots.startable() == [0], "with slot 1 open too, both would be due at version 1"
    train_in_order(slots, 2)
    assert slots.startable() == [3]


def test_another_batch_size_cuts_the_slots_that_are_left_anew():
    frontier = {"version": 2, "lowest_untrained": 3, "trained_above": (5,)}
    slots = make_slots(batch_size=3, max_steps=4, **frontier)
    assert slots.startable() == [3, 4, 6, 7, 8, 9]
    assert slots.num_slots == 10
    start(slots, [3, 4, 6, 7])
    finish(slots, [4, 6, 7])
    slots.train([4, 6, 7])
    assert slots.frontier() == Frontier(3, 4 - 1, (4, 5, 6, 7), ((0, 2), (2, 3)))
    assert slots.frontier().batch_sizes() == [2, 2, 3]
    again = make_slots(batch_size=1, max_steps=5, **vars(slots.frontier()))
    assert again.startable() == [3, 8]
    assert again.frontier().cuts == ((0, 2), (2, 3), (3, 1))
    back = make_slots(batch_size=3, max_steps=5, **vars(again.frontier()))
    assert back.frontier().cuts == ((0, 2), (2, 3), (3, 1), (3, 3))
    assert back.frontier().batch_sizes() == [2, 2, 3]


def test_smaller_batches_at_the_end_train_the_lowest_slots_that_are_left():
    slots = make_slots(
        batch_size=1,
        max_steps=3,
        max_staleness=0,
        batches_ahead=0,
        version=2,
        lowest_untrained=3,
        trained_above=(9,),
    )
    assert slots.startable() == [3]
    train_in_order(slots, 1)
    assert slots.done
    assert slots.frontier() == Frontier(3, 4, (9,), ((0, 2), (2, 1)))
    assert slots.num_slots == 10


def test_a_run_that_resumes_beyond_its_last_step_has_ended():
    slots = make_slots(max_steps=2, version=3, lowest_untrained=4, trained_above=(6, 7))
    assert slots.done
    assert slots.startable() == []
    assert slots.frontier() == Frontier(3, 4, (6, 7))
    assert slots.num_slots == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"max_steps": -1}, "max_steps must be >= 0, got -1"),
        ({"max_staleness": -1}, "max_staleness must be >= 0, got -1"),
        ({"batches_ahead": -1}, "batches_ahead must be >= 0, got -1"),
        ({"batches_ahead": 3}, "batches_ahead must be <= max_staleness=2, got 3"),
        ({"version": -1}, "frontier.version must be >= 0, got -1"),
        ({"version": 1}, "frontier: 0 trained slots are not 1 batches"),
        ({"version": 2, "lowest_untrained": 3}, "frontier: 3 trained slots are not 2 batches"),
        ({"lowest_untrained": 2}, "frontier: 2 trained slots are not 0 batches"),
        ({"version": 1, "lowest_untrained": -1}, "frontier.lowest_untrained must be >= 0, got -1"),
        (
            {"version": 1, "trained_above": (0, 1)},
            "frontier.trained_above must be slots above 0, each once, got (0, 1)",
        ),
        (
            {"version": 1, "trained_above": (1, 1)},
            "frontier.trained_above must be slots above 0, each once, got (1, 1)",
        ),
        (
            {"version": 3, "lowest_untrained": 6, "cuts": ((0, 2), (1, 3))},
            "frontier: 6 trained slots are not 3 batches",
        ),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, int], message: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        make_slots(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda slots: slots.startable(-1), "limit must be >= 0, got -1"),
        (lambda slots: slots.start(8, 2), "slot must be startable, got 8"),
        (lambda slots: slots.start(4, 2), "slot must be startable, got 4"),
        (lambda slots: slots.start(7, 0), "engine_version must be in 1..2, got 0"),
        (lambda slots: slots.start(7, 3), "engine_version must be in 1..2, got 3"),
        (lambda slots: slots.finish(4), "slot must be running, got 4"),
        (lambda slots: slots.finish(7), "slot must be running, got 7"),
        (lambda slots: slots.reopen(7), "slot must be running or finished, got 7"),
        (lambda slots: slots.deadline(3), "slot must be running or finished, got 3"),
        (lambda slots: slots.train([4]), "batch must be 2 finished slots, got [4]"),
        (lambda slots: slots.train([4, 4]), "batch must be 2 finished slots, got [4, 4]"),
        (lambda slots: slots.train([6, 4]), "batch must be 2 finished slots, got [4, 6]"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(misuse: Callable[[Slots], object], message: str):
    slots = make_slots(batch_size=2, max_staleness=2, batches_ahead=1, version=2, lowest_untrained=4)
    start(slots, [4, 5, 6])
    finish(slots, [4, 5])
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        misuse(slots)
    assert str(error.value) == message
    assert (slots.startable(), slots.num_open, slots.next_batch()) == ([7], 3, [4, 5])


def test_batch_that_would_lose_a_deadline_is_refused():
    slots = make_slots(batch_size=1, max_staleness=1, batches_ahead=1)
    start(slots, [0, 1])
    finish(slots, [1])
    slots.train([1])
    start(slots, [2])
    finish(slots, [2])
    with pytest.raises(ValueError, match=r"^batch must leave space for all slots due by 1, got \[2\]$"):
        slots.train([2])


def test_asking_after_every_finish_keeps_up_with_2000_rollouts_per_second():
    batch_size = 4096
    slots = make_slots(batch_size=batch_size, max_staleness=2, batches_ahead=2)
    start(slots, slots.startable())
    finish(slots, range(batch_size))
    slots.train(range(batch_size))
    start(slots, slots.startable())
    finish(slots, range(3 * batch_size, 4 * batch_size))
    began = time.perf_counter()
    for slot in range(batch_size, 2 * batch_size):
        assert slots.next_batch() is None, "2 batches are due at version 2, and only one can wait"
        slots.finish(slot)
    assert slots.next_batch() == list(range(batch_size, 2 * batch_size))
    assert time.perf_counter() - began < batch_size / 2000


@pytest.mark.timeout(5)
def test_a_run_that_may_be_far_ahead_pays_for_the_deadlines_it_has_alone():
    slots = Slots(batch_size=20, max_steps=2**31 - 1, max_staleness=2**31 - 1, batches_ahead=100_000)
    for slot in range(1000):
        slots.start(slot, engine_version=0)
    for slot in range(1000):
        slots.finish(slot)
        if batch := slots.next_batch():
            slots.train(batch)
    assert slots.version == 50
