"""What a stage does between two looks at it: its rate, how long items wait, how long something lasts.

Every meter starts anew when it is read. The clock is that of the running event loop, so that a run on a loop with
simulated time measures simulated seconds.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from cluster.clock import now

Clock = Callable[[], float]
T = TypeVar("T")


class Meter:
    """Counts, and gives the rate since it was last read."""

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._count = 0
        self._since = clock()

    def add(self, count: int) -> None:
        """Count some more."""
        self._count += count

    def take(self) -> float:
        """Return the count per second since the last call, and start anew."""
        until = self._clock()
        rate = self._count / max(until - self._since, 1e-9)
        self._count, self._since = 0, until
        return rate


class WaitMeter:
    """How long items wait; an item is known by a key of its own.

    >>> times = iter([0.0, 1.0, 4.0])
    >>> meter = WaitMeter(lambda: next(times))
    >>> meter.enter("a"), meter.enter("b"), meter.leave("a"), meter.take()
    (None, None, None, 4.0)
    """

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._entered: dict[Hashable, float] = {}
        self._waited_s = 0.0
        self._num_left = 0

    def enter(self, *keys: Hashable) -> None:
        """Note that these items begin to wait; those that wait already go on."""
        entered = self._clock()
        for key in keys:
            self._entered.setdefault(key, entered)

    def leave(self, *keys: Hashable) -> None:
        """Note that these items wait no more; one that did not wait is not counted."""
        left = self._clock()
        for key in keys:
            if key in self._entered:
                self._waited_s += left - self._entered.pop(key)
                self._num_left += 1

    def take(self) -> float:
        """Mean seconds of the items that left since the last call; if none did, of those that still wait.

        0.0 without any.
        """
        if self._num_left:
            mean_s = self._waited_s / self._num_left
        elif self._entered:
            mean_s = self._clock() - sum(self._entered.values()) / len(self._entered)
        else:
            mean_s = 0.0
        self._waited_s, self._num_left = 0.0, 0
        return mean_s


class SpellMeter:
    """Seconds in which something lasted; several at the same time count once."""

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._num_lasting = 0
        self._since = 0.0
        self._seconds = 0.0

    @property
    def num_lasting(self) -> int:
        """How many go on now."""
        return self._num_lasting

    def set(self, num_lasting: int | bool) -> None:
        """Say how many go on from now on."""
        if bool(num_lasting) != bool(self._num_lasting):
            until = self._clock()
            if self._num_lasting:
                self._seconds += until - self._since
            self._since = until
        self._num_lasting = int(num_lasting)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Count one more meanwhile."""
        self.set(self._num_lasting + 1)
        try:
            yield
        finally:
            self.set(self._num_lasting - 1)

    def take(self) -> float:
        """Seconds since the last call in which it lasted, and start anew."""
        if self._num_lasting:
            until = self._clock()
            self._seconds += until - self._since
            self._since = until
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class MeteredQueue(Generic[T]):
    """A queue that knows how long its items wait (`waits`), and how long it was not empty (`queued`)."""

    def __init__(self, key: Callable[[T], Hashable], clock: Clock = now) -> None:
        """`key(item)` differs between any two items that are in the queue together."""
        self._items: deque[T] = deque()
        self._key = key
        self.waits = WaitMeter(clock)
        self.queued = SpellMeter(clock)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def first(self) -> T:
        """The item that leaves next; IndexError if there is none."""
        return self._items[0]

    def append(self, item: T) -> None:
        """Put an item at the end."""
        self.extend([item])

    def extend(self, items: Iterable[T]) -> None:
        """Put items at the end, in this order."""
        self._enter([*items], self._items.extend)

    def extendleft(self, items: Iterable[T]) -> None:
        """Put items at the head, the last of them first."""
        self._enter([*items], self._items.extendleft)

    def popleft(self) -> T:
        """Take the first item; IndexError if there is none."""
        item = self._items.popleft()
        self.waits.leave(self._key(item))
        self.queued.set(len(self._items))
        return item

    def _enter(self, items: list[T], put: Callable[[list[T]], None]) -> None:
        put(items)
        self.waits.enter(*map(self._key, items))
        self.queued.set(len(self._items))
