"""Whole simulated runs of ``controller.slots``: stragglers, lagging engines, failures, resumes, fall-backs."""

import heapq
import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from controller.slots import Slots
from records.checkpoints import Frontier


@dataclass(frozen=True)
class World:
    """The settings of one run and the chances of what happens in it."""

    batch_size: int
    max_steps: int
    max_staleness: int
    batches_ahead: int
    num_engines: int = 3
    num_lanes: int = 8
    """Slots that all engines together sample at the same time."""
    length_spread: float = 1.5
    """Standard deviation of the logarithm of a rollout's duration, whose median is 1."""
    max_length: float = 50.0
    learner_time: float = 0.5
    failure: float = 0.0
    """Chance that an attempt fails; a finished slot is lost with a tenth of it."""
    laziness: float = 0.0
    """Chance that an engine refreshes only to the oldest weights on which slots may start."""
    seed: int = 0

    def slots(self, frontier: Frontier) -> Slots:
        return Slots(
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            max_staleness=self.max_staleness,
            batches_ahead=self.batches_ahead,
            frontier=frontier,
        )


@dataclass
class Simulation:
    """Engines, a learner and a clock around ``Slots``; it checks every promise of the module as it goes."""

    world: World
    batches: list[list[int]] = field(default_factory=list)
    frontiers: list[Frontier] = field(default_factory=lambda: [Frontier()])
    staleness: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.world.seed)
        self.restart(self.world.slots(self.frontiers[-1]))

    def restart(self, slots: Slots) -> None:
        """Continue with ``slots``: no attempt is running, and every engine has the learner's weights."""
        self.slots = slots
        self.engines = [slots.version] * self.world.num_engines
        self.attempts: list[tuple[float, int]] = []
        self.start_versions: dict[int, int] = {}
        self.finished: set[int] = set()
        self.now, self.learner_free_at = 0.0, 0.0
        self.training: list[int] | None = None

    def run(self, max_events: float = float("inf")) -> None:
        """Run to the end, or for ``max_events`` events."""
        events = 0
        while not self.slots.done and events < max_events:
            self.refresh_engines()
            self.start_slots()
            self.form_batch()
            self.next_event()
            events += 1

    def refresh_engines(self) -> None:
        for index, version in enumerate(self.engines):
            if self.random.random() < 0.5:
                is_lazy = self.random.random() < self.world.laziness
                target = self.slots.minimum_engine_version if is_lazy else self.slots.version
                self.engines[index] = max(version, target)

    def start_slots(self) -> None:
        fit = [version for version in self.engines if version >= self.slots.minimum_engine_version]
        while fit and len(self.attempts) < self.world.num_lanes and (startable := self.slots.startable(1)):
            engine_version = self.random.choice(fit)
            self.slots.start(startable[0], engine_version)
            self.start_versions[startable[0]] = engine_version
            duration = min(self.random.lognormvariate(0, self.world.length_spread), self.world.max_length)
            heapq.heappush(self.attempts, (self.now + duration, startable[0]))

    def form_batch(self) -> None:
        if self.training is None:
            self.training = self.slots.next_batch()
            assert self.training == self.expected_batch()
            self.check_blocking()
            self.learner_free_at = self.now + self.world.learner_time * self.random.random()

    def next_event(self) -> None:
        if self.training and (not self.attempts or self.learner_free_at <= self.attempts[0][0]):
            self.now = self.learner_free_at
            self.train(self.training)
        elif self.attempts:
            self.now, slot = heapq.heappop(self.attempts)
            self.end_attempt(slot)
        else:
            assert self.slots.startable(), "deadlock: nothing runs, no batch, and no slot may start"

    def end_attempt(self, slot: int) -> None:
        if self.random.random() < self.world.failure:
            self.reopen(slot)
        else:
            self.slots.finish(slot)
            self.finished.add(slot)
        free = sorted(self.finished.difference(self.training or ()))
        if free and self.random.random() < self.world.failure / 10:
            self.reopen(self.random.choice(free))

    def reopen(self, slot: int) -> None:
        self.slots.reopen(slot)
        self.finished.discard(slot)
        del self.start_versions[slot]

    def train(self, batch: list[int]) -> None:
        for slot in batch:
            self.staleness.append(self.slots.version - self.start_versions.pop(slot))
            assert self.staleness[-1] <= self.world.max_staleness
            self.finished.remove(slot)
        self.slots.train(batch)
        self.training = None
        self.batches.append(batch)
        self.frontiers.append(self.slots.frontier())

    def leaves_space(self, batch: Collection[int]) -> bool:
        """State the rule in its own words: j batches hold what is left and due within j versions (0: now)."""
        bound, size = self.world.max_staleness, self.world.batch_size
        left = [version + bound for slot, version in self.start_versions.items() if slot not in batch]
        num_due = [sum(due <= self.slots.version + j for due in left) for j in range(bound + 2)]
        return all(num <= j * size for j, num in enumerate(num_due))

    def expected_batch(self) -> list[int] | None:
        by_deadline = sorted((self.start_versions[slot], slot) for slot in self.finished)
        batch = [slot for _, slot in by_deadline[: self.world.batch_size]]
        return sorted(batch) if len(batch) == self.world.batch_size and self.leaves_space(batch) else None

    def check_blocking(self) -> None:
        blocking = self.slots.blocking()
        is_waiting = self.training is None and len(self.finished) >= self.world.batch_size
        assert bool(blocking) == is_waiting
        assert blocking == sorted(set(blocking) & (self.start_versions.keys() - self.finished))

    def check_complete(self) -> None:
        """Every slot of the run was trained exactly once, in ``max_steps`` whole batches."""
        assert len(self.batches) == self.world.max_steps
        assert all(len(batch) == self.world.batch_size for batch in self.batches)
        num_slots = self.world.max_steps * self.world.batch_size
        assert sorted(slot for batch in self.batches for slot in batch) == list(range(num_slots))
        assert self.slots.frontier() == Frontier(self.world.max_steps, num_slots)
        assert self.slots.num_open == 0


@st.composite
def worlds(draw: st.DrawFn, max_batch_size: int = 6, max_staleness: int = 5) -> World:
    bound = draw(st.integers(0, max_staleness))
    return World(
        batch_size=draw(st.integers(1, max_batch_size)),
        max_steps=draw(st.integers(0, 12)),
        max_staleness=bound,
        batches_ahead=draw(st.integers(0, bound)),
        num_engines=draw(st.integers(1, 4)),
        num_lanes=draw(st.sampled_from([1, 3, 8, 40])),
        length_spread=draw(st.sampled_from([0.0, 0.5, 1.5, 3.0])),
        learner_time=draw(st.sampled_from([0.0, 0.5, 5.0])),
        failure=draw(st.sampled_from([0.0, 0.1, 0.6])),
        laziness=draw(st.sampled_from([0.0, 0.5, 1.0])),
        seed=draw(st.integers(0, 10**6)),
    )


@given(worlds())
def test_every_run_ends_with_each_slot_trained_once_and_within_its_deadline(world: World):
    simulation = Simulation(world)
    simulation.run()
    simulation.check_complete()


@given(worlds(max_staleness=0))
def test_staleness_0_is_the_synchronous_algorithm(world: World):
    simulation = Simulation(world)
    simulation.run()
    size = world.batch_size
    assert simulation.batches == [list(range(v * size, (v + 1) * size)) for v in range(world.max_steps)]
    assert set(simulation.staleness) <= {0}


@given(worlds(), st.lists(st.integers(1, 60), max_size=4), st.data())
def test_run_resumed_at_any_moment_trains_each_slot_once(world: World, stops: list[int], data: st.DataObject):
    simulation = Simulation(world)
    for max_events in stops:
        simulation.run(max_events)
        bound = data.draw(st.integers(0, 5), label="max_staleness of the resumed run")
        ahead = data.draw(st.integers(0, bound), label="batches_ahead of the resumed run")
        simulation.world = replace(simulation.world, max_staleness=bound, batches_ahead=ahead)
        simulation.restart(simulation.world.slots(simulation.slots.frontier()))
    simulation.run()
    simulation.check_complete()


@given(worlds(), st.lists(st.integers(1, 60), min_size=1, max_size=4), st.data())
def test_run_resumed_with_another_batch_size_or_end_trains_each_slot_once(
    world: World, stops: list[int], data: st.DataObject
):
    """Whatever is changed, no slot is trained twice, and at the end the lowest ones are trained."""
    simulation, before = Simulation(world), Frontier()
    for max_events in stops:
        simulation.run(max_events)
        simulation.world = replace(
            simulation.world,
            batch_size=data.draw(st.integers(1, 6), label="batch_size of the resumed run"),
            max_steps=data.draw(st.integers(0, 12), label="max_steps of the resumed run"),
        )
        before = simulation.slots.frontier()
        simulation.restart(simulation.world.slots(before))
    promised = simulation.slots.num_slots
    simulation.run()
    frontier, trained = simulation.slots.frontier(), [slot for batch in simulation.batches for slot in batch]
    assert len(simulation.batches) == frontier.version == max(before.version, simulation.world.max_steps)
    assert sorted(trained) == [*range(frontier.lowest_untrained), *frontier.trained_above]
    assert frontier.batch_sizes() == [len(batch) for batch in simulation.batches]
    assert simulation.slots.num_slots == promised >= max(trained, default=-1) + 1
    if frontier.trained_above and simulation.slots.version > before.version:
        assert set(frontier.trained_above) <= set(before.trained_above), "only what was trained ahead stays ahead"


@given(worlds(), st.lists(st.integers(1, 60), max_size=4), st.data())
def test_run_that_falls_back_trains_each_slot_once(world: World, stops: list[int], data: st.DataObject):
    simulation = Simulation(world)
    for max_events in stops:
        simulation.run(max_events)
        version = data.draw(st.integers(0, simulation.slots.version), label="version fallen back to")
        simulation.restart(simulation.world.slots(simulation.frontiers[version]))
        assert simulation.slots.frontier() == simulation.frontiers[version]
        del simulation.batches[version:], simulation.frontiers[version + 1 :]
    simulation.run()
    simulation.check_complete()


@given(worlds(max_batch_size=3), st.integers(1, 60))
def test_no_other_batch_would_do_where_the_rule_waits(world: World, max_events: int):
    simulation = Simulation(world)
    simulation.run(max_events)
    if simulation.training is None and simulation.slots.next_batch() is None:
        assert not any(map(simulation.leaves_space, combinations(simulation.finished, world.batch_size)))


@given(worlds(), st.integers(1, 60))
def test_window_is_every_untrained_slot_below_its_end(world: World, max_events: int):
    simulation = Simulation(world)
    simulation.run(max_events)
    trained = {slot for batch in simulation.batches for slot in batch}
    end = min(simulation.slots.version + 1 + world.batches_ahead, world.max_steps) * world.batch_size
    started = simulation.start_versions.keys()
    assert simulation.slots.startable() == sorted(set(range(end)) - trained - started)


def test_bound_8_with_2_batches_ahead_holds_for_long_tails():
    simulation = Simulation(World(64, 100, 8, 2, num_lanes=128, max_length=12.0, learner_time=2.0))
    simulation.run()
    simulation.check_complete()
    assert 0 < max(simulation.staleness) <= 8
    assert sum(simulation.staleness) / len(simulation.staleness) < 3
