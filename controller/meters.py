"""What a stage does between two looks at it: its rate, how long items wait, how long something lasts.

Every meter starts anew when it is read; `WastedTokens` counts from the beginning of the run. The clock is that of
the running event loop, so that a run on a loop with simulated time measures simulated seconds.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

from cluster.waiting import now

Clock = Callable[[], float]
T = TypeVar("T")


class RateMeter:
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
        """Note that these items begin to wait; those that wait already keep waiting."""
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


class DurationMeter:
    """Seconds in which something lasted; several at the same time count once."""

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._num_lasting = 0
        self._since = 0.0
        self._seconds = 0.0

    @property
    def num_lasting(self) -> int:
        """How many last now."""
        return self._num_lasting

    def set(self, num_lasting: int | bool) -> None:
        """Say how many last from now on."""
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
        self.queued = DurationMeter(clock)

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


class WorkMeter:
    """What the workers of a stage did since it was last asked, and how much they held for how long.

    `take()` gives sums over the workers: `tokens` done; `busy_s`, seconds with anything held; `held_s`, the
    integral of the number held over time; `held_squared_s`, that of its square. `held_squared_s / held_s` is the
    number held that the average item saw.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, float]] = {}  # number, and since when
        self._tokens = 0
        self._busy_s = self._held_s = self._held_squared_s = 0.0

    def add(self, tokens: int) -> None:
        """Count some tokens as done."""
        self._tokens += tokens

    def hold(self, worker: str, num: int) -> None:
        """Note that a worker holds `num` items from now on."""
        before, since = self._held.get(worker, (0, 0.0))
        until = now()
        if before:
            seconds = until - since
            self._busy_s += seconds
            self._held_s += before * seconds
            self._held_squared_s += before * before * seconds
        self._held[worker] = (num, until)

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        for worker, (num, _) in self._held.items():
            self.hold(worker, num)
        taken = {"tokens": self._tokens, "busy_s": self._busy_s, "held_s": self._held_s}
        taken["held_squared_s"] = self._held_squared_s
        self._tokens = 0
        self._busy_s = self._held_s = self._held_squared_s = 0.0
        return taken


# -- waste -------------------------------------------------------------------------------------------------
# Response tokens that were generated and then not trained on, by cause, from the beginning of the run.
# `records/metrics.py` says what each cause is. Tokens that masks leave out of a step are in `masked/...`. Counts
# continue when a run is resumed; what was generated after the last step before a crash is not known.


Cause = Literal["lost", "refused", "given_up", "skipped", "fall_back", "cut_off"]
CAUSES: tuple[Cause, ...] = ("lost", "refused", "given_up", "skipped", "fall_back", "cut_off")


class WastedTokens:
    """Follows finished rollouts to their training, or to what becomes of them instead."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """`rows`: the metrics rows of a run that is continued, all of them, as they were written."""
        self._wasted: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self._finished: dict[int, int] = {}  # response tokens by slot, not trained yet
        self._trained: dict[int, int] = {}  # tokens by step, of steps that count
        for row in rows:
            self._void(row["step"] - 1)
            self._trained[row["step"]] = int(row.get("tokens_trained", 0))
            self._wasted = {cause: row.get(f"wasted/{cause}", self._wasted[cause]) for cause in CAUSES}

    def begin(self, version: int) -> None:
        """An incarnation begins at `version`: later steps, and rollouts that were not trained, are wasted."""
        self._wasted["fall_back"] += self._void(version) + sum(self._finished.values())
        self._finished.clear()

    def finish(self, slot: int, num_tokens: int) -> None:
        """Note that a slot has been generated."""
        self._finished[slot] = num_tokens

    def lose(self, slot: int, cause: Cause) -> None:
        """Note that a slot is generated again; or, if it had not been generated, that the attempt was cut off."""
        num_tokens = self._finished.pop(slot, None)
        if num_tokens is None:
            self._wasted["cut_off"] += 1
        else:
            self._wasted[cause] += num_tokens

    def train(self, row: Mapping[str, Any], slots: Iterable[int]) -> dict[str, int]:
        """Note a step: its metrics row and its slots. Returns what the row says of waste."""
        for slot in slots:
            self._finished.pop(slot, None)
        num_tokens = int(row.get("tokens_trained", 0))
        if row.get("skipped"):
            self._wasted["skipped"] += num_tokens
            num_tokens = 0
        self._trained[row["step"]] = num_tokens
        return {f"wasted/{cause}": count for cause, count in self._wasted.items()}

    def _void(self, version: int) -> int:
        """Forget the steps above a version; returns their tokens."""
        return sum(self._trained.pop(step) for step in [*self._trained] if step > version)
