"""How many workers each pool should have: pure, from metrics rows to decisions.

    metrics rows --read--> readings with the same workers --remember, decide--> Decision --> `cluster/balancer.py`

All speeds are in slots per second of the whole run: a pool that scores a third of the slots at 2 per second keeps
up with a learner of 6. The wanted counts come from measured speeds, not one step at a time: workers go to the
slowest pool until every pool keeps up with the learner, or the limits are reached. On top:

- A pool grows only while it is full and the learner waits: the capacity of a pool that is not full is a guess.
- A pool shrinks only from `EXCESS` more than the run needs to `SLACK` more, and never by more than half.
- `Memory` holds the speed of every allocation that was tried. One that is known to be no faster is not tried
  again, and where another was faster the run goes back to it. So the changes come to an end, unless the load
  changes: a speed that is off by `DRIFT` from the remembered one empties the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from settings.cluster import BalanceConfig, Limits

FULL = 0.5
"""A pool is full where it is used, or work waits for it, for this share of its capacity and time."""

LEAST_USE = 0.02
"""Capacities are not taken from less use than this."""

HEADROOM = 0.1
"""A pool that grows gets so much more than the learner needs: lengths and speeds vary."""

SLACK = 0.25
"""A pool that shrinks keeps so much more than is needed."""

EXCESS = 0.5
"""A pool shrinks only if it has so much more than is needed even with one worker less."""

MOST_WEIGHT = 4
"""A remembered speed is the mean of measurements; a new one counts for at least 1 / (1 + this)."""

DRIFT = 0.25
"""A change of speed by this fraction with the same workers is a change of load."""

Counts = Mapping[str, int]
Allocation = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class PoolReading:
    """How one pool did."""

    workers: int
    rate: float
    """Slots of the run per second that it kept up with."""
    use: float
    """Share of its capacity in use: `used` of rollout workers, `busy` of scorers, whose calls share one engine."""
    is_full: bool
    """True if work waited for it, so that more workers are of use."""

    @property
    def capacity(self) -> float:
        """Slots per second that one worker could do: measured if the pool is full, else what its use suggests."""
        return self.rate / max(self.workers * self.use, LEAST_USE)

    def numbers(self) -> dict[str, Any]:
        """For an event."""
        speeds = {"slots_per_s": round(self.rate, 3), "use": round(self.use, 3), "is_full": self.is_full}
        return {"workers": self.workers, **speeds, "capacity_per_worker": round(self.capacity, 3)}


@dataclass(frozen=True)
class Reading:
    """How a run did over some steps with the same workers."""

    rate: float
    """Slots trained per second, pauses for evaluations and checkpoints left out."""
    learner_rate: float
    """Slots per second that the learner would train if it never waited."""
    wait_share: float
    """Share of the learner's time that it waited for batches, pauses left out."""
    pools: Mapping[str, PoolReading]

    def numbers(self) -> dict[str, Any]:
        """The numbers for an event."""
        learner = {"slots_per_s": round(self.rate, 3), "learner_slots_per_s": round(self.learner_rate, 3)}
        pools = {role: pool.numbers() for role, pool in self.pools.items()}
        return {**learner, "wait_share": round(self.wait_share, 3), "pools": pools}


def read(rows: Sequence[Mapping[str, Any]], batch_size: int, roles: Sequence[str]) -> Reading | None:
    """A reading from metrics rows of some steps; None if they hold no time, or nothing of a pool's work."""
    train_s = sum(row["time/train_s"] + row["time/publish_s"] for row in rows)
    wait_s = sum(row["time/rollout_wait_s"] + row["time/score_wait_s"] for row in rows)
    if train_s <= 0:
        return None
    trained = len(rows) * batch_size
    done = {role: _mean(rows, f"slots/{role}") for role in roles}
    teachers = sum(rate for role, rate in done.items() if role.startswith("teacher"))
    if min(done.values()) <= 0:
        return None
    pools: dict[str, PoolReading] = {}
    for role in roles:
        share = done[role] / teachers if role.startswith("teacher") else 1.0
        used, busy = _mean(rows, f"used/{role}"), _mean(rows, f"busy/{role}")
        queued, is_rollout = _mean(rows, f"queued/{role}"), role == "rollout"
        is_full = queued >= FULL or (is_rollout and used >= FULL)
        pools[role] = PoolReading(
            rows[-1][f"workers/{role}"], done[role] / share, used if is_rollout else busy, is_full
        )
    total_s = train_s + wait_s
    return Reading(trained / total_s, trained / train_s, wait_s / total_s, pools)


def average(readings: Sequence[Reading]) -> Reading:
    """The mean of readings with the same workers; a pool is full if it is in all of them."""
    pools = {
        role: PoolReading(
            pool.workers,
            fmean(each.pools[role].rate for each in readings),
            fmean(each.pools[role].use for each in readings),
            all(each.pools[role].is_full for each in readings),
        )
        for role, pool in readings[-1].pools.items()
    }
    return Reading(
        fmean(each.rate for each in readings),
        fmean(each.learner_rate for each in readings),
        fmean(each.wait_share for each in readings),
        pools,
    )


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean over the time of the rows."""
    total_s = sum(row["time/step_s"] for row in rows)
    return sum(row[key] * row["time/step_s"] for row in rows) / max(total_s, 1e-9)


@dataclass(frozen=True)
class Decision:
    """New numbers of workers, with the reason and the numbers it was taken from."""

    before: Counts
    after: Counts
    reason: str
    numbers: Mapping[str, Any]

    @property
    def changes(self) -> dict[str, int]:
        """The new number of workers of each pool that changes."""
        return {role: count for role, count in self.after.items() if count != self.before[role]}


@dataclass(frozen=True)
class Measured:
    """What was measured with the same workers."""

    first: Reading
    rate: float
    """Slots per second, mean of all measurements."""
    weight: int = 1


Memory = Mapping[Allocation, Measured]
"""What was measured with which workers, under the present load."""


class PoolSizes:
    """Gathers readings while no worker comes or goes, and decides on them; `note` every step."""

    def __init__(self, config: BalanceConfig, batch_size: int) -> None:
        self._config = config
        self._batch_size = batch_size
        self._rows: list[Mapping[str, Any]] = []
        self._readings: list[Reading] = []
        self._counts: Counts = {}
        self._quiet_until_s = 0.0
        self._memory: Memory = {}

    def disturb(self, now_s: float) -> None:
        """Note that workers come or go: what was read since the last change says nothing of the next."""
        self._rows, self._readings = [], []
        self._quiet_until_s = now_s + self._config.cooldown_s

    def note(self, row: Mapping[str, Any], counts: Counts, limits: Limits, now_s: float) -> Decision | None:
        """Take in the metrics row of a step with `counts` healthy workers; returns a change to make, if any.

        Who makes it calls `disturb` until its workers serve or have ended.
        """
        if dict(counts) != dict(self._counts):
            self._counts = dict(counts)
            self._rows, self._readings = [], []
        if now_s < self._quiet_until_s:
            return None
        self._rows.append(row)
        if sum(each["time/step_s"] for each in self._rows) < self._config.every_s:
            return None
        reading = read(self._rows, self._batch_size, [*counts])
        self._rows = []
        if reading is None:
            return None
        self._readings = [*self._readings, reading][-self._config.readings :]
        if len(self._readings) < self._config.readings:
            return None
        self._memory = remember(self._memory, counts, average(self._readings))
        return decide(self._readings, counts, limits, self._memory, self._config)


def remember(memory: Memory, counts: Counts, reading: Reading) -> Memory:
    """The memory with one more measurement; if that contradicts what is known, all else is forgotten."""
    here = _allocation(counts)
    known, new = memory.get(here), Measured(reading, reading.rate)
    has_changed = any(_is_off(old.first.learner_rate, reading.learner_rate) for old in memory.values())
    if has_changed or (known is not None and _is_off(known.first.rate, reading.rate)):
        return {here: new}
    if known is not None:
        rate = (known.rate * known.weight + reading.rate) / (known.weight + 1)
        new = Measured(known.first, rate, min(known.weight + 1, MOST_WEIGHT))
    return {**memory, here: new}


def decide(
    readings: Sequence[Reading], counts: Counts, limits: Limits, memory: Memory, config: BalanceConfig
) -> Decision | None:
    """The change that all readings agree on, or None. `memory` holds their average too."""
    if any({role: pool.workers for role, pool in each.pools.items()} != dict(counts) for each in readings):
        return None
    mean = average(readings)
    best = _better_known(memory, counts, limits, mean, config.margin)
    if best is not None:
        named = ", ".join(f"{count} {role}" for role, count in best)
        reason = f"back to {named}, measured at {memory[best].rate:.3g} slots/s: {mean.rate:.3g} now"
        return Decision(dict(counts), dict(best), reason, mean.numbers())
    wanted = _wanted(mean, counts, limits, memory, config)
    directions = _directions(wanted, counts)
    if any(_directions(_wanted(each, counts, limits, memory, config), counts) != directions for each in readings):
        return None
    after = _in_steps(wanted, counts, limits, config)
    if after == dict(counts) or _is_known_as_no_better(memory, counts, after, mean, config.margin):
        return None
    return Decision(dict(counts), after, _reason(mean, counts, after), mean.numbers())


# -- the wanted numbers -----------------------------------------------------------------------------------


def _wanted(
    reading: Reading, counts: Counts, limits: Limits, memory: Memory, config: BalanceConfig
) -> dict[str, int]:
    """The numbers of workers that the speeds ask for, within the limits."""
    waits = reading.wait_share > config.margin
    grows = {role for role, pool in reading.pools.items() if waits and pool.is_full}
    high = {
        r: limits.high[r] if r in grows else max(min(counts[r], limits.high[r]), limits.low[r]) for r in counts
    }
    growth = Limits(limits.low, high, limits.max_total)
    fewest = _fewest(reading, growth)
    kept = _with_slack(fewest, reading, counts, growth, shrink=config.shrink)
    if grows and not any(kept[role] > counts[role] for role in counts):
        slowest = min(grows, key=lambda role: counts[role] * reading.pools[role].capacity)
        if not _was_futile(memory, counts, slowest, reading, config.margin):
            kept = _one_more(kept, slowest, growth)
    is_moved = {*_directions(kept, counts).values()} >= {1, -1}
    is_allowed = all(count >= limits.low[role] for role, count in counts.items())
    if is_moved and is_allowed and _speed(reading, kept) < reading.rate * (1 + config.margin):
        return dict(counts)
    return kept


def _fewest(reading: Reading, limits: Limits) -> dict[str, int]:
    """The fewest workers with which the slowest pool is as fast as can be, or as the learner needs."""
    need = reading.learner_rate * (1 + HEADROOM)
    counts = dict(limits.low)
    while limits.max_total is None or sum(counts.values()) < limits.max_total:
        slowest = min(counts, key=lambda role: counts[role] * reading.pools[role].capacity)
        if counts[slowest] * reading.pools[slowest].capacity >= need or counts[slowest] >= limits.high[slowest]:
            break
        counts[slowest] += 1
    return counts


def _with_slack(
    fewest: Mapping[str, int], reading: Reading, counts: Counts, limits: Limits, *, shrink: bool
) -> dict[str, int]:
    """Leave pools the workers they have: those that give `SLACK` more than is needed, or without `shrink` all."""
    after = dict(fewest)
    needed = _speed(reading, fewest)

    def lacks(role: str) -> bool:
        capacity = reading.pools[role].capacity
        may_shrink = shrink and (counts[role] - 1) * capacity >= needed * (1 + EXCESS)
        has_enough = may_shrink and after[role] * capacity >= needed * (1 + SLACK)
        return after[role] < min(counts[role], limits.high[role]) and not has_enough

    while limits.max_total is None or sum(after.values()) < limits.max_total:
        lacking = [role for role in after if lacks(role)]
        if not lacking:
            break
        after[min(lacking, key=lambda role: after[role] * reading.pools[role].capacity)] += 1
    return after


def _one_more(counts: Mapping[str, int], role: str, limits: Limits) -> dict[str, int]:
    """One worker more for a full pool that the speeds alone do not explain, if the limits allow it."""
    has_capacity = limits.max_total is None or sum(counts.values()) < limits.max_total
    return {**counts, role: counts[role] + (has_capacity and counts[role] < limits.high[role])}


def _speed(reading: Reading, counts: Counts) -> float:
    """Slots per second that these workers should do together with the learner."""
    pools = [count * reading.pools[role].capacity for role, count in counts.items()]
    return min(reading.learner_rate, *pools)


def _in_steps(wanted: Counts, counts: Counts, limits: Limits, config: BalanceConfig) -> dict[str, int]:
    """As far towards the wanted numbers as one decision may go."""
    most = config.max_change
    after = {
        role: max(min(wanted[role], count + most), count - min(most, (count + 1) // 2), limits.low[role])
        for role, count in counts.items()
    }
    while limits.max_total is not None and sum(after.values()) > limits.max_total:
        growing = [role for role in after if after[role] > counts[role]]
        if not growing:
            break
        after[max(growing, key=lambda role: after[role] - counts[role])] -= 1
    return after


# -- what was measured before -----------------------------------------------------------------------------


def _better_known(
    memory: Memory, counts: Counts, limits: Limits, mean: Reading, margin: float
) -> Allocation | None:
    """The fastest allocation that is known, if it is faster than this one; of some about as fast the smallest."""
    here = memory.get(_allocation(counts))
    speed = mean.rate if here is None else max(here.rate, mean.rate)
    known = {a: each.rate for a, each in memory.items() if _is_within(dict(a), limits)}
    best = max(known.values(), default=0.0)
    if mean.wait_share <= margin or best <= speed * (1 + margin):
        return None
    near = [a for a in known if known[a] >= best / (1 + margin / 2) and a != _allocation(counts)]
    return min(near, key=lambda a: (sum(dict(a).values()), -known[a]), default=None)


def _was_futile(memory: Memory, counts: Counts, role: str, mean: Reading, margin: float) -> bool:
    """True if the run is known to be about as fast with fewer workers in this pool and the same in the others."""
    others = {each: count for each, count in counts.items() if each != role}
    return any(
        dict(allocation)[role] < counts[role]
        and {each: count for each, count in allocation if each != role} == others
        and known.rate >= mean.rate / (1 + margin / 2)
        for allocation, known in memory.items()
    )


def _is_known_as_no_better(memory: Memory, counts: Counts, after: Counts, mean: Reading, margin: float) -> bool:
    known = memory.get(_allocation(after))
    if known is None:
        return False
    if sum(after.values()) < sum(counts.values()):
        return known.rate < mean.rate / (1 + margin / 2)
    return known.rate <= mean.rate * (1 + margin)


def _is_within(counts: Counts, limits: Limits) -> bool:
    fits = limits.max_total is None or sum(counts.values()) <= limits.max_total
    return fits and all(limits.low[role] <= count <= limits.high[role] for role, count in counts.items())


def _is_off(old: float, new: float) -> bool:
    return not old / (1 + DRIFT) <= new <= old * (1 + DRIFT)


def _directions(wanted: Counts, counts: Counts) -> dict[str, int]:
    """Of each pool, 1 if it grows, -1 if it shrinks, 0 if it stays."""
    return {role: (wanted[role] > count) - (wanted[role] < count) for role, count in counts.items()}


def _allocation(counts: Counts) -> Allocation:
    return tuple(sorted(counts.items()))


def _reason(reading: Reading, counts: Counts, after: Counts) -> str:
    """What changes and why, in words."""
    parts = []
    for role, count in after.items():
        speed = reading.pools[role].capacity
        if count > counts[role]:
            parts.append(
                f"{role} {counts[role]} -> {count}: {counts[role]} can do {counts[role] * speed:.3g} slots/s, the "
                f"learner {reading.learner_rate:.3g}"
            )
        elif count < counts[role]:
            parts.append(
                f"{role} {counts[role]} -> {count}: {count} can do {count * speed:.3g} slots/s, "
                f"{_speed(reading, after):.3g} are needed"
            )
    return "; ".join(parts)
