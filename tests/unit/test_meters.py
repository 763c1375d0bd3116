"""Meters against a clock that is set by hand: waits, spells, queues."""

from controller.meters import DurationMeter, MeteredQueue, RateMeter, WaitMeter


class HandClock:
    """A clock that stands where it was put."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_the_count_over_the_time_since_it_was_read() -> None:
    clock = HandClock()
    meter = RateMeter(clock)
    meter.add(10)
    clock.now = 4.0
    assert meter.take() == 2.5
    clock.now = 5.0
    assert meter.take() == 0.0


def test_the_mean_wait_is_that_of_the_items_that_left() -> None:
    clock = HandClock()
    meter = WaitMeter(clock)
    meter.enter(1, 2)
    clock.now = 3.0
    meter.enter(2, 3)  # 2 waits already
    meter.leave(1)
    clock.now = 5.0
    meter.leave(2, 99)
    assert meter.take() == (3.0 + 5.0) / 2
    assert meter.take() == 2.0, "nothing left since: the age of what waits"
    meter.leave(3)
    assert meter.take() == 2.0
    assert meter.take() == 0.0


def test_overlapping_spells_count_once_and_one_that_goes_on_counts_in_both_looks() -> None:
    clock = HandClock()
    meter = DurationMeter(clock)
    with meter.lasting():
        clock.now = 1.0
        with meter.lasting():
            assert meter.num_lasting == 2
            clock.now = 3.0
        clock.now = 4.0
        assert meter.take() == 4.0
        clock.now = 6.0
    clock.now = 9.0
    assert meter.take() == 2.0
    assert meter.take() == 0.0


def test_a_queue_keeps_its_order_and_knows_its_waits_and_when_it_was_empty() -> None:
    clock = HandClock()
    queue: MeteredQueue[str] = MeteredQueue(str, clock)
    queue.append("b")
    queue.extend("cd")
    queue.extendleft("a")
    assert (len(queue), queue.first) == (4, "a")
    clock.now = 2.0
    assert [queue.popleft() for _ in range(4)] == ["a", "b", "c", "d"]
    clock.now = 7.0
    queue.append("e")
    clock.now = 8.0
    assert queue.waits.take() == 2.0
    assert queue.queued.take() == 3.0, "two seconds at first, one since 7"
