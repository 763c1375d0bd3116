"""The balance of the pools in a closed loop with a small simulation of rollout workers, teachers and a learner.

The simulation is a fluid: slots flow through the start window at the speed of the workers. What the balance sees
are metrics rows, as in a run.
"""

import itertools
import random
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.pool_sizes import Decision, PoolSizes
from settings.cluster import BalanceConfig, Limits

BATCH = 16
TICK_S = 0.1
ROLES = ("rollout", "teacher")
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
        ranges = [range(limits.low[role], limits.high[role] + 1) for role in ROLES]
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
        self.sizes = PoolSizes(self.config, BATCH)
        self.random = random.Random(0)
        self.startable, self.running, self.to_score, self.scored = (
            (1.0 + self.batches_ahead) * BATCH,
            0.0,
            0.0,
            0.0,
        )

    def run(self, seconds: float) -> float:
        """Run for a while; returns the slots trained per second."""
        start_s, trained = self.now_s, self.trained
        while self.now_s < start_s + seconds:
            row = self._step()
            decision = self.sizes.note(row, self.counts, self.limits, self.now_s)
            if decision is not None:
                self.decisions.append((self.now_s, decision))
                assert all(self.limits.low[r] <= n <= self.limits.high[r] for r, n in decision.after.items())
                assert sum(decision.after.values()) <= (self.limits.max_total or 1000)
                self.counts = dict(decision.after)
                self.sizes.disturb(self.now_s)
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


@cache
def measured_speed(load: Load, rollout: int, teacher: int) -> float:
    """Slots per second of a static allocation in the simulation."""
    never = CONFIG.model_copy(update={"every_s": 1e9})
    still = World(load, {"rollout": rollout, "teacher": teacher}, limits(), never)
    still.run(20.0)
    return still.run(60.0)


def best_of(load: Load, among: Limits) -> float:
    """Measured slots per second of the best static allocation."""
    numbers = range(1, among.high["rollout"] + 1)
    fits = [(r, t) for r in numbers for t in numbers if r + t <= (among.max_total or 1000)]
    nearly = [each for each in fits if min(load.speeds(*each)) > 0.8 * load.best(among)]
    return max(measured_speed(load, *each) for each in nearly)


def check_settles(world: World, *, most_moves: int, settle_s: float = 300.0, quiet_s: float = 500.0) -> float:
    """Let the balance settle; returns the speed afterwards, during which it changes nothing."""
    world.run(settle_s)
    num_moves = len(world.decisions)
    assert num_moves <= most_moves, [decision.reason for _, decision in world.decisions]
    rate = world.run(quiet_s)
    late = [(time_s, decision.after, decision.reason) for time_s, decision in world.decisions[num_moves:]]
    assert late == []
    return rate


SPLITS = [(1, 7), (2, 6), (4, 4), (7, 1)]


@pytest.mark.parametrize(("rollout", "teacher"), SPLITS)
@pytest.mark.parametrize("teacher_rate", [0.4, 2.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_any_split_of_shared_devices_comes_to_the_best_one_in_few_moves_and_stays(
    rollout: int, teacher: int, teacher_rate: float, noise: float
) -> None:
    load = Load(teacher_rate=teacher_rate, train_s=0.2, noise=noise)
    world = World(load, {"rollout": rollout, "teacher": teacher}, limits(max_total=8))
    rate = check_settles(world, most_moves=5)
    assert rate >= 0.9 * best_of(replace(load, noise=0.0), world.limits), world.counts


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rollout=st.integers(1, 8),
    teacher=st.integers(1, 8),
    teacher_rate=st.floats(0.5, 8.0),
    train_s=st.floats(0.3, 4.0),
    max_total=st.sampled_from([None, 8, 16]),
    noise=st.sampled_from([0.0, 0.1, 0.2]),
)
def test_whatever_the_start_and_the_load_it_settles_at_nine_tenths_of_the_best(
    rollout: int, teacher: int, teacher_rate: float, train_s: float, max_total: int | None, noise: float
) -> None:
    if max_total is not None:
        rollout, teacher = min(rollout, max_total // 2), min(teacher, max_total // 2)
    load = Load(teacher_rate=teacher_rate, train_s=train_s, noise=noise)
    world = World(load, {"rollout": rollout, "teacher": teacher}, limits(max_total=max_total))
    rate = check_settles(world, most_moves=10, settle_s=600.0, quiet_s=400.0)
    assert rate >= 0.9 * best_of(replace(load, noise=0.0), world.limits), world.counts


def test_workers_that_nobody_needs_are_retired_unless_told_otherwise() -> None:
    load = Load(train_s=4.0)  # the learner trains 4 slots per second: 2 rollout workers, 2 teachers
    for shrink in (True, False):
        config = CONFIG.model_copy(update={"shrink": shrink})
        world = World(load, {"rollout": 10, "teacher": 10}, limits(), config)
        rate = check_settles(world, most_moves=8)
        assert rate >= 0.95 * 4
        if shrink:
            assert all(2 <= count <= 4 for count in world.counts.values()), world.counts
            assert "are needed" in world.decisions[0][1].reason
        else:
            assert (world.counts, world.decisions) == ({"rollout": 10, "teacher": 10}, [])


def test_far_from_balance_the_moves_are_large_but_no_larger_than_allowed() -> None:
    load = Load(teacher_rate=0.5, train_s=2.0)  # 8 slots per second: 4 rollout workers, 16 teachers
    world = World(load, {"rollout": 4, "teacher": 1}, limits(high=20))
    check_settles(world, most_moves=8)
    steps = [d.after["teacher"] - d.before["teacher"] for _, d in world.decisions]
    assert steps[:3] == [4, 4, 4]
    assert max(steps) == CONFIG.max_change
    assert 16 <= world.counts["teacher"] <= 18


def test_a_change_of_load_is_followed() -> None:
    world = World(Load(teacher_rate=4.0, train_s=0.2), {"rollout": 4, "teacher": 4}, limits(max_total=8))
    check_settles(world, most_moves=4)
    before = dict(world.counts)
    world.load = replace(world.load, teacher_rate=0.5)  # responses got longer, say
    num_moves = len(world.decisions)
    rate = check_settles(world, most_moves=num_moves + 4)
    assert world.counts["teacher"] > before["teacher"]
    assert rate >= 0.9 * best_of(world.load, world.limits)


def test_where_the_start_window_limits_the_run_nothing_is_changed() -> None:
    load = Load(rollout_s=10.0, in_flight=200, teacher_rate=50.0, train_s=0.2)
    config = CONFIG.model_copy(update={"shrink": False})
    world = World(load, {"rollout": 2, "teacher": 1}, limits(), config)
    world.run(600.0)
    assert world.decisions == []


def test_nothing_is_decided_before_enough_readings_and_nothing_is_read_after_a_change() -> None:
    world = World(Load(teacher_rate=0.4, train_s=0.2), {"rollout": 7, "teacher": 1}, limits(max_total=8))
    world.run(120.0)
    times = [time_s for time_s, _ in world.decisions]
    assert times[0] >= CONFIG.readings * CONFIG.every_s
    pause_s = CONFIG.cooldown_s + CONFIG.readings * CONFIG.every_s
    assert all(later - earlier >= pause_s for earlier, later in itertools.pairwise(times))
    numbers = world.decisions[0][1].numbers
    assert numbers["pools"]["teacher"]["workers"] == 1
    assert numbers["pools"]["teacher"]["capacity_per_worker"] == pytest.approx(0.4, rel=0.05)


def test_a_worker_that_died_is_replaced_where_its_pool_has_too_few() -> None:
    world = World(Load(train_s=4.0), {"rollout": 4, "teacher": 1}, limits(low=2))
    world.run(60.0)
    assert world.decisions[0][1].after["teacher"] >= 2
