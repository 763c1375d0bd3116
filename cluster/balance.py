"""Decides how many workers each pool should have: pure, from readings of a run (`cluster/readings.py`).

The wanted numbers come from measured speeds, not one step at a time: workers go to the slowest pool until every
pool keeps up with the learner, or the limits are reached: the best worst pool with the fewest workers. On top:

- A pool grows only while it is full and the learner waits: the capacity of a pool that is not full is a guess.
- A pool shrinks only from `EXCESS` more than the run needs to `SLACK` more, and never by more than half.
- `Memory` holds the speed of every allocation that was tried. One that is known to be no faster is not tried
  again, and where another was faster the run goes back to it. So the changes come to an end, unless the load
  changes: a speed that is off by `DRIFT` from the remembered one empties the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.readings import Reading, average
from settings.cluster import BalanceConfig, Limits

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


@dataclass(frozen=True)
class Memory:
    """What was measured with which numbers of workers, under the present load."""

    measured: Mapping[Allocation, Measured] = field(default_factory=dict)

    def of(self, counts: Counts) -> Measured | None:
        """What was measured with these workers."""
        return self.measured.get(_allocation(counts))


def remember(memory: Memory, counts: Counts, reading: Reading) -> Memory:
    """The memory with one more measurement; if that contradicts what is known, all else is forgotten."""
    known, new = memory.of(counts), {_allocation(counts): Measured(reading, reading.rate)}
    has_changed = any(_is_off(old.first.learner_rate, reading.learner_rate) for old in memory.measured.values())
    if has_changed or (known is not None and _is_off(known.first.rate, reading.rate)):
        return Memory(new)
    if known is not None:
        rate = (known.rate * known.weight + reading.rate) / (known.weight + 1)
        new = {_allocation(counts): Measured(known.first, rate, min(known.weight + 1, MOST_WEIGHT))}
    return Memory({**memory.measured, **new})


def decide(
    readings: Sequence[Reading], counts: Counts, limits: Limits, memory: Memory, config: BalanceConfig
) -> Decision | None:
    """The change that the last `config.readings` readings agree on, or None.

    All of them are of runs with `counts` workers. `memory` holds their average too.
    """
    recent = readings[-config.readings :]
    if len(recent) < config.readings or any(_counts_of(each) != dict(counts) for each in recent):
        return None
    mean = average(recent)
    best = _better_known(memory, counts, limits, mean, config.margin)
    if best is not None:
        reason = (
            f"back to {_named(best)}, measured at {memory.measured[best].rate:.3g} slots/s: {mean.rate:.3g} now"
        )
        return Decision(dict(counts), dict(best), reason, mean.numbers())
    wanted = _wanted(mean, counts, limits, memory, config)
    if any(not _agrees(_wanted(each, counts, limits, memory, config), wanted, counts) for each in recent):
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
    is_moved = {_sign(kept[role] - count) for role, count in counts.items()} >= {1, -1}
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
    has_room = limits.max_total is None or sum(counts.values()) < limits.max_total
    return {**counts, role: counts[role] + (has_room and counts[role] < limits.high[role])}


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
    here = memory.of(counts)
    speed = mean.rate if here is None else max(here.rate, mean.rate)
    known = {a: each.rate for a, each in memory.measured.items() if _is_within(dict(a), limits)}
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
        for allocation, known in memory.measured.items()
    )


def _is_known_as_no_better(memory: Memory, counts: Counts, after: Counts, mean: Reading, margin: float) -> bool:
    known = memory.of(after)
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


# -- small things -----------------------------------------------------------------------------------------


def _agrees(one: Counts, other: Counts, counts: Counts) -> bool:
    """True if both change the same pools in the same direction."""
    return all(_sign(one[role] - count) == _sign(other[role] - count) for role, count in counts.items())


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _counts_of(reading: Reading) -> dict[str, int]:
    return {role: pool.workers for role, pool in reading.pools.items()}


def _allocation(counts: Counts) -> Allocation:
    return tuple(sorted(counts.items()))


def _named(allocation: Allocation) -> str:
    return ", ".join(f"{count} {role}" for role, count in allocation)


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
