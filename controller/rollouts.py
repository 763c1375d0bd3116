"""The rollout stage: startable slots go to student engines, finished slots come back in finish order.

Back-pressure: the start window bounds open slots, `max_in_flight` bounds a worker, the hand-over to scoring is a
bounded queue, and Ray pauses a worker's stream while its items are not taken.

Prompts that were there when engines died run alone on one engine, to tell the poisonous from the unlucky.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import pyarrow as pa
from ray.exceptions import RayError

from actors.engine import Sampling
from cluster.errors import is_lost
from cluster.streams import finished_slots
from cluster.waiting import NO_LIMIT_S
from cluster.worker import Worker
from controller.context import RunContext
from controller.failures import NO_FAILURES, Failures, Refusal
from controller.lanes import Rollout
from controller.meters import RateMeter, WaitMeter, WastedTokens, WorkMeter
from controller.slots import Slots
from records.events import reason_of

logger = logging.getLogger(__name__)

MAX_GIVEN_UP_IN_A_ROW = 16
"""Prompts given up without a scored slot in between (or a batch of them, if larger) before the run fails."""


class Prompts(Protocol):
    """What the stage needs of the prompt source."""

    replacements: dict[int, int]
    """Place in the prompt order of slots whose first prompt was given up; part of a checkpoint."""
    num_slots: int
    """Slots of the run as it stands: places from there on are free for prompts that replace others."""

    def requests_for(self, slots: Sequence[int], attempts: Sequence[int]) -> pa.Table:
        """Return the generation requests of slots."""
        ...

    def give_up(self, slot: int) -> str:
        """Give the slot's prompt up, so that it takes the next one; returns the prompt's id."""
        ...


class RolloutStage:
    """Keeps every student engine busy with slots it may start; hands finished slots to `deliver`."""

    def __init__(
        self,
        context: RunContext,
        *,
        slots: Slots,
        prompts: Prompts,
        sampling: Sampling | None,
        deliver: Callable[[Rollout], Awaitable[None]],
        waste: WastedTokens,
    ) -> None:
        self._config, self._pool = context.config, context.pools["rollout"]
        self._signal, self._events = context.signal, context.events
        self._slots = slots
        self._prompts = prompts
        self._sampling = sampling
        self._deliver = deliver
        self._waste = waste
        self._failures: dict[int, Failures] = {}  # of slots that failed and are not scored yet
        self._isolation = Isolation(lambda slot: self._failures.get(slot, NO_FAILURES).num_deaths)
        self._given_up_in_a_row = 0
        self._meter = RateMeter()
        self.finished = RateMeter()  # slots
        self.waits = WaitMeter()
        """Of startable slots, until a worker starts them."""
        self.work = WorkMeter()
        self.num_given_up = 0

    @property
    def num_in_flight(self) -> int:
        """Slots being generated."""
        return sum(worker.num_slots for worker in self._pool.workers)

    def take_throughput(self) -> float:
        """Response tokens generated per second since this was last asked."""
        return self._meter.take()

    def _hold(self, worker: Worker, change: int) -> None:
        """Count slots as begun on a worker, or as ended."""
        worker.num_slots += change
        self.work.hold(worker.name, worker.num_slots)

    async def run(self) -> None:
        """Assign slots as long as the pipeline runs."""
        async with asyncio.TaskGroup() as streams:
            while True:
                shares = await self._signal.until(
                    self._assign,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: f"a startable slot ({self._slots.num_open} open, {self.num_in_flight} in flight)",
                )
                for worker, slots in shares:
                    streams.create_task(self._stream(worker, slots))

    def _assign(self) -> list[tuple[Worker, list[int]]]:
        """Start what may start, each slot on the least loaded eligible worker, and not where it failed last."""
        if not self._slots.num_waiting:
            return []
        if self._failures or self._isolation.worker is not None:
            return self._assign_with_failures()
        # Every rollout that ends runs this: full workers are passed over, and only as many slots are read as fit.
        minimum, most = self._slots.minimum_engine_version, self._config.rollout.max_in_flight
        able = [w for w in self._pool.workers if w.num_slots < most and w.takes_slots and w.version >= minimum]
        counts = {worker: most - worker.num_slots for worker in able}
        free, shares = FreeSlots(counts), dict[Worker, list[int]]()
        for slot in self._slots.startable(sum(counts.values())):
            worker = free.take()
            assert worker is not None, "as many slots were asked for as are free"
            self._begin(slot, worker)
            shares.setdefault(worker, []).append(slot)
        return list(shares.items())

    def _assign_with_failures(self) -> list[tuple[Worker, list[int]]]:
        """The same while slots have failed: these have streams of their own, and some run alone on a worker."""
        minimum, most = self._slots.minimum_engine_version, self._config.rollout.max_in_flight
        startable = self._slots.startable()
        eligible = [worker for worker in self._pool.serving if worker.version >= minimum]
        self._isolation.reserve(startable, eligible)
        free = FreeSlots({w: most - w.num_slots for w in eligible if w is not self._isolation.worker})
        shares: dict[Worker, list[int]] = {}
        alone: list[tuple[Worker, list[int]]] = []
        has_others = len(self._pool.serving) > 1
        for slot in startable:
            failed = self._failures.get(slot)
            if self._isolation.needs(slot):
                worker = self._isolation.take()
            else:
                worker = free.take(avoid=failed.worker if failed is not None and has_others else None)
            if worker is None:
                continue  # no free slot, or only where it failed: the others are busy, or still loading weights
            self._begin(slot, worker)
            if failed is None:
                shares.setdefault(worker, []).append(slot)
            else:
                alone.append((worker, [slot]))  # a bad prompt fails alone
        return alone + list(shares.items())

    def _begin(self, slot: int, worker: Worker) -> None:
        """Count a slot as started on a worker."""
        self._hold(worker, 1)
        self._slots.start(slot, worker.version)
        self.waits.leave(slot)

    async def _stream(self, worker: Worker, slots: list[int]) -> None:
        """Read one generation stream to its end; what it did not deliver is started again."""
        missing = set(slots)
        try:
            with self._pool.use(worker, GENERATING):
                try:
                    await self._read(worker, missing)
                except (RayError, TimeoutError) as error:
                    await self._fail(worker, missing, error)
        finally:
            self._hold(worker, -len(missing))
        self._signal.changed()

    async def _fail(self, worker: Worker, slots: set[int], error: BaseException) -> None:
        """Start again, if possible elsewhere, what a failed stream did not deliver."""
        reason, missing = reason_of(error), sorted(slots)
        if not worker.is_retired:
            self._events.add("rollout_failed", worker=worker.name, slots=missing, reason=reason)
            await self._pool.examine(worker, error)
        if worker.is_retired:
            self._events.add("rollouts_taken_back", worker=worker.name, slots=missing, reason=reason)
        refusal = Refusal(worker, reason)
        for slot in missing:
            earlier = self._failures.get(slot, NO_FAILURES)
            self._retry(slot, earlier.after(error, worker, refusal, num_together=len(missing)), reason)

    async def _read(self, worker: Worker, missing: set[int]) -> None:
        slots = sorted(missing)
        earlier = [self._failures.get(slot, NO_FAILURES) for slot in slots]
        attempts = [failures.num_attempts for failures in earlier]
        finished = finished_slots(
            worker.handle,
            self._prompts.requests_for(slots, attempts),
            self._sampling,
            timeout_s=self._config.cluster.rollout_timeout_s,
            what=f"the next of {len(slots)} rollouts from {worker.name}",
            ended=worker.ended,
        )
        async with aclosing(finished):
            async for notes, table in finished:
                for note in notes:
                    missing.remove(note.slot)
                    self._blame(worker, note.slot)
                    self._hold(worker, -1)
                    self._meter.add(note.num_response_tokens)
                    self.work.add(note.num_response_tokens)
                    self._waste.finish(note.slot, note.num_response_tokens)
                self.finished.add(len(notes))
                self._pool.succeed(worker)
                self._signal.changed()
                for note in notes:
                    await self._deliver(Rollout(note, table))
        assert not missing, f"{worker.name} ended its stream without slots {sorted(missing)}"

    def _blame(self, worker: Worker, slot: int) -> None:
        """What `worker` could do, another could not: it may be broken."""
        failures = self._failures.get(slot)
        refusal = failures.blame(worker) if failures is not None else None
        if refusal is not None:
            self._pool.blame(refusal.worker, refusal.reason)

    def accept(self, slot: int) -> None:
        """Note that a slot's rollouts are scored: its earlier failures do not count any more."""
        self._failures.pop(slot, None)
        self._given_up_in_a_row = 0

    def lose(self, slot: int, error: BaseException, killed: Failures = NO_FAILURES) -> None:
        """Start a slot again whose rollouts were lost after generation, or which no teacher could score.

        `killed` holds the deaths of teachers that worked on it.
        """
        failures = self._failures.get(slot, NO_FAILURES)
        reason, was_lost = reason_of(error), is_lost(error) or killed.num_lost > 0
        failures = failures.lost() if was_lost else failures.refused(Refusal(None, reason))
        failures = replace(failures, num_kills=max(failures.num_kills, killed.num_kills))
        self._retry(slot, failures, reason)
        self._signal.changed()

    def _retry(self, slot: int, failures: Failures, reason: str) -> None:
        was_refused = failures.num_refused > self._failures.get(slot, NO_FAILURES).num_refused
        self._slots.reopen(slot)
        self.waits.enter(slot)
        config = self._config.rollout
        verdict = failures.verdict(max_refused=config.max_attempts, max_lost=config.max_lost_attempts)
        self._waste.lose(slot, "given_up" if verdict else "refused" if was_refused else "lost")
        if verdict is not None:
            self._give_up(slot, verdict, reason)
            failures = Failures(worker=failures.worker)
        self._failures[slot] = failures

    def _give_up(self, slot: int, verdict: str, reason: str) -> None:
        """Let the slot take the next prompt; RuntimeError if nothing else happens any more."""
        prompt_id = self._prompts.give_up(slot)
        self.num_given_up += 1
        self._given_up_in_a_row += 1
        self._events.add("prompt_given_up", prompt_id=prompt_id, slot=slot, reason=verdict, error=reason)
        if self._given_up_in_a_row >= max(MAX_GIVEN_UP_IN_A_ROW, self._config.batch_size):
            raise RuntimeError(
                f"{self._given_up_in_a_row} prompts in a row were given up, and no slot was scored in between; "
                f"the last, {prompt_id}, failed with: {reason}"
            )


# -- which worker takes the next slot -----------------------------------------------------------------------


class FreeSlots:
    """What workers may still be given: the one with the most is found without looking at all of them.

    >>> free = FreeSlots({first: 2, second: 1})
    >>> [free.take(), free.take(), free.take(), free.take()]
    [first, first, second, None]
    """

    def __init__(self, counts: Mapping[Worker, int]) -> None:
        """Free slots by worker; of equals, the worker named first comes first."""
        self._heap = [(-slots, order, worker) for order, (worker, slots) in enumerate(counts.items()) if slots > 0]
        heapq.heapify(self._heap)

    def take(self, *, avoid: Worker | None = None) -> Worker | None:
        """The worker with the most free slots gets one; None if there is none, or only on `avoid`."""
        if not self._heap or (self._heap[0][2] is avoid and len(self._heap) == 1):
            return None
        taken = heapq.heappop(self._heap)
        if taken[2] is avoid:
            taken = heapq.heapreplace(self._heap, taken)
        slots, order, worker = taken
        if slots < -1:
            heapq.heappush(self._heap, (slots + 1, order, worker))
        return worker


GENERATING = "generate"
"""The stage of a worker's use that a stream of rollouts is."""

ISOLATED_AFTER = 2
"""Deaths of engines after which a slot runs alone: with one, too many are merely unlucky."""


class Isolation:
    """Reserves one engine on which suspicious slots run alone, one after the other, while there are any."""

    def __init__(self, num_deaths: Callable[[int], int]) -> None:
        """`num_deaths(slot)`: engines that died while they worked on it."""
        self._num_deaths = num_deaths
        self.worker: Worker | None = None
        """The reserved engine; no other slot may start on it."""

    def needs(self, slot: int) -> bool:
        """Whether the slot runs alone."""
        return self._num_deaths(slot) >= ISOLATED_AFTER

    def reserve(self, startable: Sequence[int], eligible: Sequence[Worker]) -> None:
        """Reserve the least loaded engine if one of the startable slots needs it; else free the one reserved."""
        reserved = self.worker
        if not any(self.needs(slot) for slot in startable):
            self.worker = reserved if reserved is not None and reserved.num_slots and reserved.is_healthy else None
        elif reserved not in eligible:
            self.worker = min(eligible, key=lambda worker: worker.num_slots, default=None)

    def take(self) -> Worker | None:
        """The reserved engine if nothing is generated on it, and no stream waits for its end."""
        worker = self.worker
        return worker if worker is not None and worker.num_slots == worker.uses[GENERATING] == 0 else None
