"""The balance of the pools in a closed loop with a small simulation of rollout workers, teachers and a learner.

The simulation is a fluid: slots flow through the start window at the speed of the workers. What the balance sees
are metrics rows, as in a run.
"""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.balance import Decision
from cluster.balance_config import BalanceConfig, Limits
from cluster.balancing import Balancing

BATCH = 16
TICK_S = 0.05
CONFIG = BalanceConfig(enabled=True, every_s=10.0, readings=2, cooldown_s=5.0)


@dataclass(frozen=True)
class Load:
    """Seconds of one response, slots in flight on a worker, slots per second of a teacher, seconds of a step."""

    rollout_s: float = 2.0
    in_flight: int = 4
    teacher_rate: float = 2.0
    train_s: float = 1.0
    noise: float = 0.0

    def best(self, limits: Limits) -> float:
        """Slots per second of the best static allocation, waits for whole batches apart."""
        ranges = [range(limits.low[role], limits.high[role] + 1) for role in ("rollout", "teacher")]
        fits = [each for each in itertools.product(*ranges) if sum(each) <= (limits.max_total or 1000)]
        return max(min(self.speeds(*each)) for each in fits)

    def speeds(self, rollout: int, teacher: int) -> tuple[float, float, float]:
        """Slots per second of each stage."""
        return rollout * self.in_flight / self.rollout_s, teacher * self.teacher_rate, BATCH / self.train_s


@dataclass
class World:
    """A run under a load, and what the balance does with it."""

    load: Load
    counts: dict[str, int]
    limits: Limits
    config: BalanceConfig = CONFIG
    batches_ahead: int = 2
    now_s: float = 0.0
    trained: int = 0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.balancing = Balancing(self.config, BATCH)
        self.random = random.Random(0)
        self.startable, self.running, self.to_score, self.scored = (
            (1.0 + self.batches_ahead) * BATCH,
            0.0,
            0.0,
            0.0,
        )

    def run(self, seconds: float) -> float:
        """Go on for a while; returns the slots trained per second."""
        start_s, trained = self.now_s, self.trained
        while self.now_s < start_s + seconds:
            row = self._step()
            decision = self.balancing.note(row, self.counts, self.limits, self.now_s)
            if decision is not None:
                self.decisions.append((self.now_s, decision))
                assert all(self.limits.low[r] <= n <= self.limits.high[r] for r, n in decision.after.items())
                assert sum(decision.after.values()) <= (self.limits.max_total or 1000)
                self.counts = dict(decision.after)
                self.balancing.disturb(self.now_s)
        return (self.trained - trained) / (self.now_s - start_s)

    def _step(self) -> dict[str, Any]:
        names = [*("rollout", "score", "used", "busy", "queued/rollout", "queued/teacher")]
        sums: dict[str, float] = dict.fromkeys([*names, "slots/rollout", "slots/teacher"], 0.0)
        start_s = self.now_s
        while self.scored < BATCH:
            sums["score" if self.to_score > 1 else "rollout"] += TICK_S
            self._tick(sums)
        self.scored -= BATCH
        train_s = self.load.train_s * self._noise()
        for _ in range(max(1, round(train_s / TICK_S))):
            self._tick(sums)
        self.startable += BATCH
        self.trained += BATCH
        seconds = self.now_s - start_s
        return {
            **{"time/step_s": seconds, "time/train_s": train_s, "time/publish_s": 0.0},
            **{"time/rollout_wait_s": sums["rollout"], "time/score_wait_s": sums["score"]},
            **{"used/rollout": sums["used"] / seconds, "busy/rollout": 1.0},
            **{"used/teacher": sums["busy"] / seconds, "busy/teacher": sums["busy"] / seconds},
            **{f"workers/{role}": count for role, count in self.counts.items()},
            **{key: value / seconds for key, value in sums.items() if "/" in key},
        }

    def _tick(self, sums: dict[str, float]) -> None:
        """Let slots flow for a moment."""
        rollout, teacher = self.counts["rollout"], self.counts["teacher"]
        started = min(self.startable, rollout * self.load.in_flight - self.running)
        started = max(0.0, started)
        self.startable, self.running = self.startable - started, self.running + started
        finished = min(self.running, self.running / self.load.rollout_s * TICK_S * self._noise())
        self.running, self.to_score = self.running - finished, self.to_score + finished
        most = teacher * self.load.teacher_rate * TICK_S * self._noise()
        scored = min(self.to_score, most)
        self.to_score, self.scored = self.to_score - scored, self.scored + scored
        self.now_s += TICK_S
        sums["used"] += TICK_S * min(1.0, self.running / (rollout * self.load.in_flight))
        sums["busy"] += TICK_S * scored / most
        sums["queued/rollout"] += TICK_S * (self.startable > 0.5)
        sums["queued/teacher"] += TICK_S * (self.to_score > 0.5)
        sums["slots/rollout"] += finished
        sums["slots/teacher"] += scored

    def _noise(self) -> float:
        return 1 + self.load.noise * self.random.uniform(-1, 1)


def limits(low: int = 1, high: int = 12, max_total: int | None = None) -> Limits:
    """The same range for both pools."""
    return Limits({"rollout": low, "teacher": low}, {"rollout": high, "teacher": high}, max_total)


def best_static(world: World) -> float:
    """Measured slots per second of the fastest static allocation."""
    never = replace_readings(world.config)
    rates = []
    for rollout, teacher in itertools.product(range(1, 13), range(1, 13)):
        if rollout + teacher <= (world.limits.max_total or 24):
            still = World(world.load, {"rollout": rollout, "teacher": teacher}, world.limits, never)
            still.run(20.0)
            rates.append(still.run(60.0))
    return max(rates)


def replace_readings(config: BalanceConfig) -> BalanceConfig:
    """A balance that never gets to a decision."""
    return config.model_copy(update={"every_s": 1e9})


SPLITS = [(rollout, 8 - rollout) for rollout in range(1, 8)]


@pytest.mark.parametrize(("rollout", "teacher"), SPLITS)
@pytest.mark.parametrize("teacher_rate", [0.4, 2.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_any_split_of_shared_devices_comes_to_the_best_one_in_few_moves_and_stays(
    rollout: int, teacher: int, teacher_rate: float, noise: float
) -> None:
    load = Load(teacher_rate=teacher_rate, train_s=0.2, noise=noise)
    world = World(load, {"rollout": rollout, "teacher": teacher}, limits(max_total=8))
    world.run(300.0)
    num_moves = len(world.decisions)
    rate = world.run(1200.0)
    assert num_moves <= 5
    assert len(world.decisions) == num_moves, [str(d.reason) for _, d in world.decisions]
    assert rate >= 0.9 * min(load.best(world.limits), best_static(world)), world.counts
