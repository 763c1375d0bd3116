"""What the balance of the pools knows: the speed of the learner and of every pool, read from metrics rows.

All speeds are in slots per second of the whole run: a pool that scores a third of the slots at 2 per second keeps
up with a learner of 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FULL = 0.5
"""A pool is full where it is used, or work waits for it, for this share of its capacity and time."""

LEAST_USE = 0.02
"""Capacities are not taken from less use than this."""


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
        pools = {
            role: {
                "workers": pool.workers,
                "slots_per_s": round(pool.rate, 3),
                "use": round(pool.use, 3),
                "is_full": pool.is_full,
                "capacity_per_worker": round(pool.capacity, 3),
            }
            for role, pool in self.pools.items()
        }
        learner = {"slots_per_s": round(self.rate, 3), "learner_slots_per_s": round(self.learner_rate, 3)}
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
    rate, learner_rate = trained / (train_s + wait_s), trained / train_s
    return Reading(rate, learner_rate, wait_s / (train_s + wait_s), pools)


def average(readings: Sequence[Reading]) -> Reading:
    """The mean of readings with the same workers; a pool is full if it is in all of them."""
    last = readings[-1]
    pools = {
        role: PoolReading(
            pool.workers,
            _average([each.pools[role].rate for each in readings]),
            _average([each.pools[role].use for each in readings]),
            all(each.pools[role].is_full for each in readings),
        )
        for role, pool in last.pools.items()
    }
    return Reading(
        _average([each.rate for each in readings]),
        _average([each.learner_rate for each in readings]),
        _average([each.wait_share for each in readings]),
        pools,
    )


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean over the time of the rows."""
    total_s = sum(row["time/step_s"] for row in rows)
    return sum(row[key] * row["time/step_s"] for row in rows) / max(total_s, 1e-9)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
