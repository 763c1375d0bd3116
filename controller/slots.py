"""Decides which slots of the prompt order start, and which are trained next, under a hard staleness bound.

The prompt order is cut into slots 0, 1, 2, ...; a batch is ``batch_size`` slots, a run ``max_steps`` batches.
``version``, the learner's weight version, rises with every batch, trained or skipped (its slots are used up).

    waiting --start--> running --finish--> finished --train--> trained      (open: running or finished)
       ^----- reopen ------'----- reopen -----'

- Start window: the ``(1 + batches_ahead) * batch_size`` lowest untrained slots, or as many as the batches that are
  left take. That is the untrained ones below ``(version + 1 + batches_ahead) * batch_size``, but where a run
  resumes with a smaller ``batches_ahead`` or another ``batch_size``: there the second would let more slots be open
  than the deadlines allow, or fewer than a batch. Another ``batch_size`` cuts the slots that are left anew.
- Deadline: a slot started on an engine of version a is trained at learner version ``<= a + max_staleness``.
  It starts only if ``a >= version - (max_staleness - batches_ahead)``, so that it is due ``batches_ahead``
  versions from now or later. A waiting slot has no deadline.
- Batch: the finished slots with the earliest deadlines, then the lowest numbers. It waits until, after it, no
  open slot is due at this version and, for every j, those due within the next j versions fit into j batches.

No deadline is missed: at any moment, for every j >= 0, at most ``(j + 1) * batch_size`` open slots are due by
``version + j``. A batch keeps this by its rule, a failure only takes a slot away, and a start is due too late
to matter for ``j < batches_ahead``, while for larger j the whole window is no more than that. So a restart is
safe even where a lagging engine makes it due earlier than the failed attempt was.

The rule cannot deadlock: if nothing runs and nothing can start, the whole window is finished; by the above,
a batch of its earliest deadlines leaves at most ``j * batch_size`` slots due within the next j versions.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection

from records.checkpoints import BEGINNING, Frontier


class Slots:
    """The state of every slot of a run; its ``version`` is the learner's weight version.

    >>> slots = Slots(batch_size=2, max_steps=10, max_staleness=1, batches_ahead=1)
    >>> slots.startable()
    [0, 1, 2, 3]
    >>> for slot in (0, 2, 3):
    ...     slots.start(slot, engine_version=0)
    >>> slots.finish(2), slots.finish(3), slots.next_batch()
    (None, None, [2, 3])
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_steps: int,
        max_staleness: int,
        batches_ahead: int,
        frontier: Frontier = BEGINNING,
    ) -> None:
        """Begin a run, or resume it at ``frontier``; ValueError names the setting or field that is wrong."""
        lower_limits = [("batch_size", batch_size, 1), ("max_steps", max_steps, 0)]
        lower_limits += [("max_staleness", max_staleness, 0), ("batches_ahead", batches_ahead, 0)]
        for name, value, minimum in lower_limits:
            if value < minimum:
                raise ValueError(f"{name} must be >= {minimum}, got {value}")
        if batches_ahead > max_staleness:
            raise ValueError(f"batches_ahead must be <= max_staleness={max_staleness}, got {batches_ahead}")
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.max_staleness = max_staleness
        self.batches_ahead = batches_ahead
        self._resume(frontier)

    @property
    def done(self) -> bool:
        """True once ``max_steps`` batches are trained or skipped; at once, if a run resumes beyond them."""
        return self.version >= self.max_steps

    @property
    def num_slots(self) -> int:
        """One more than the highest slot that will have been trained at the end."""
        num_trained = self._lowest_untrained + len(self._trained_above)
        num_left = max(0, self.max_steps - self.version) * self.batch_size
        return max([num_trained + num_left, *(slot + 1 for slot in self._trained_above)])

    @property
    def minimum_engine_version(self) -> int:
        """The oldest weight version on which a slot may start now."""
        return max(0, self.version - (self.max_staleness - self.batches_ahead))

    @property
    def num_open(self) -> int:
        """Slots running or finished."""
        return len(self._deadlines)

    @property
    def num_finished(self) -> int:
        """Slots that a batch could take."""
        return len(self._finished)

    @property
    def num_waiting(self) -> int:
        """Slots that may start."""
        return len(self._waiting)

    def startable(self, limit: int | None = None) -> list[int]:
        """Return the waiting slots of the window, lowest first, at most ``limit`` of them."""
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be >= 0, got {limit}")
        return self._waiting[:limit]

    def start(self, slot: int, engine_version: int) -> None:
        """Note that ``slot`` is sampled from ``engine_version`` on (of a group: its oldest sample's).

        Raises ValueError if the slot is not startable, or the version too old or newer than the learner's.
        """
        index = bisect_left(self._waiting, slot)
        if self._waiting[index : index + 1] != [slot]:
            raise ValueError(f"slot must be startable, got {slot}")
        if not self.minimum_engine_version <= engine_version <= self.version:
            allowed = f"{self.minimum_engine_version}..{self.version}"
            raise ValueError(f"engine_version must be in {allowed}, got {engine_version}")
        del self._waiting[index]
        self._deadlines[slot] = engine_version + self.max_staleness
        self._num_due[self._deadlines[slot]] += 1

    def finish(self, slot: int) -> None:
        """Note that the rollouts of ``slot`` are scored: it may be trained. ValueError unless it runs."""
        if slot not in self._deadlines or slot in self._finished:
            raise ValueError(f"slot must be running, got {slot}")
        self._finished.add(slot)
        self._num_finished_due[self._deadlines[slot]] += 1

    def reopen(self, slot: int) -> None:
        """Let a running slot, or a finished one whose rollouts are lost, start again; else ValueError."""
        self._close(slot)
        insort(self._waiting, slot)

    def deadline(self, slot: int) -> int:
        """Return the last version at which an open slot may be trained; ValueError if it is not open."""
        if slot not in self._deadlines:
            raise ValueError(f"slot must be running or finished, got {slot}")
        return self._deadlines[slot]

    def next_batch(self) -> list[int] | None:
        """Return the slots to train now, ascending, or None while the rule waits; changes nothing.

        The batch stays good until it is trained, whatever starts, finishes or fails besides its own slots.
        A call that returns None costs O(deadlines of open slots): ask after every ``finish``.
        """
        if len(self._finished) < self.batch_size:
            return None
        if self._first_crowded(self._num_finished_due) is not None:
            return None
        by_deadline = sorted(self._finished, key=lambda slot: (self._deadlines[slot], slot))
        return sorted(by_deadline[: self.batch_size])

    def blocking(self) -> list[int]:
        """Return the running slots, ascending, of which one or more must finish or fail before a batch.

        Empty unless ``batch_size`` slots are finished and wait for the sake of a deadline.
        """
        crowded = self._first_crowded(self._num_finished_due)
        if len(self._finished) < self.batch_size or crowded is None:
            return []
        running = self._deadlines.keys() - self._finished
        return sorted(slot for slot in running if self._deadlines[slot] <= crowded)

    def train(self, batch: Collection[int]) -> None:
        """Note that ``batch`` was trained or skipped at this version, and raise the version by one.

        Raises ValueError unless it is ``batch_size`` finished slots and no deadline of another is lost.
        """
        if len(batch) != self.batch_size or len(self._finished.intersection(batch)) != self.batch_size:
            raise ValueError(f"batch must be {self.batch_size} finished slots, got {sorted(batch)}")
        crowded = self._first_crowded(Counter(self._deadlines[slot] for slot in batch))
        if crowded is not None:
            raise ValueError(f"batch must leave space for all slots due by {crowded}, got {sorted(batch)}")
        for slot in batch:
            self._close(slot)
        self._trained_above.update(batch)
        while self._lowest_untrained in self._trained_above:
            self._trained_above.remove(self._lowest_untrained)
            self._lowest_untrained += 1
        self.version += 1
        self._fill_window()

    def frontier(self) -> Frontier:
        """Return which slots are trained, to resume from or to fall back to with a new instance."""
        return Frontier(self.version, self._lowest_untrained, tuple(sorted(self._trained_above)), self._cuts)

    def _resume(self, frontier: Frontier) -> None:
        sizes = frontier.batch_sizes()
        self._cuts = frontier.cuts
        last_size = frontier.cuts[-1][1] if frontier.cuts else sizes[-1] if sizes else self.batch_size
        if last_size != self.batch_size:
            self._cuts = (*(frontier.cuts or ((0, last_size),)), (frontier.version, self.batch_size))
        self.version = frontier.version
        self._lowest_untrained = self._next_slot = frontier.lowest_untrained
        self._trained_above = set(frontier.trained_above)
        self._waiting: list[int] = []  # ascending
        self._finished: set[int] = set()
        self._deadlines: dict[int, int] = {}  # of every open slot
        self._num_due: Counter[int] = Counter()  # open slots of each deadline
        self._num_finished_due: Counter[int] = Counter()  # finished slots of each deadline
        self._fill_window()

    def _fill_window(self) -> None:
        size = min(1 + self.batches_ahead, self.max_steps - self.version) * self.batch_size
        self._next_slot = max(self._next_slot, self._lowest_untrained)
        while len(self._waiting) + len(self._deadlines) < size:
            if self._next_slot not in self._trained_above:
                self._waiting.append(self._next_slot)
            self._next_slot += 1

    def _close(self, slot: int) -> None:
        due = self.deadline(slot)
        del self._deadlines[slot]
        _take_one(self._num_due, due)
        if slot in self._finished:
            self._finished.remove(slot)
            _take_one(self._num_finished_due, due)

    def _first_crowded(self, num_candidates_due: Counter[int]) -> int | None:
        """Return the first version by which more open slots are due than batches can train; None if all fit.

        The batch of this version takes its candidates by deadline, the later batches may take any open slot.
        From ``version + batches_ahead`` on the whole window fits.
        """
        num_open = num_candidates = 0
        limit = self.version + self.batches_ahead
        for due in sorted(due for due in self._num_due if self.version <= due < limit):  # others add no slot
            num_open += self._num_due[due]
            num_candidates += num_candidates_due[due]
            num_left = num_open - min(num_candidates, self.batch_size)
            if num_left > (due - self.version) * self.batch_size:
                return due
        return None


def _take_one(counts: Counter[int], key: int) -> None:
    """Count one less, and keep no zeros: a long run has many versions."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
