"""The rollout stage: startable slots go to student engines, finished slots come back in finish order.

Back-pressure: the start window bounds open slots, `max_in_flight` bounds a worker, the hand-over to scoring is a
bounded queue, and Ray pauses a worker's stream while its items are not taken.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray

from cluster.config import RunConfig
from cluster.events import Events
from cluster.metering import Meter
from cluster.notes import EndOfStream, RolloutNote
from cluster.pool import Pool, Worker
from cluster.slots import Slots
from cluster.waiting import Signal, wait_for

logger = logging.getLogger(__name__)

STREAM_ITEMS_AHEAD = 64
"""Items (note and table per slot) a worker may yield before they are taken."""


@dataclass(frozen=True)
class Rollout:
    """A finished slot: its note, and the reference of its table."""

    note: RolloutNote
    table: Any  # ray.ObjectRef


class Prompts(Protocol):
    """What the stage needs of the prompt source."""

    replacements: dict[int, int]
    """Place in the prompt order of slots whose first prompt was given up; part of a checkpoint."""

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
        config: RunConfig,
        *,
        pool: Pool,
        slots: Slots,
        prompts: Prompts,
        sampling: Any,
        deliver: Callable[[Rollout], Any],
        signal: Signal,
        events: Events,
    ) -> None:
        self._config = config
        self._pool = pool
        self._slots = slots
        self._prompts = prompts
        self._sampling = sampling
        self._deliver = deliver
        self._signal = signal
        self._events = events
        self._attempts: dict[int, int] = {}  # of slots that failed
        self._in_flight: dict[Worker, int] = dict.fromkeys(pool.workers, 0)
        self._meter = Meter()
        self.num_given_up = 0

    @property
    def num_in_flight(self) -> int:
        """Slots being generated."""
        return sum(self._in_flight.values())

    def take_throughput(self) -> float:
        """Response tokens generated per second since this was last asked."""
        return self._meter.take()

    async def run(self) -> None:
        """Assign slots as long as the pipeline runs."""
        async with asyncio.TaskGroup() as streams:
            while True:
                shares = await self._signal.until(
                    self._assign,
                    timeout_s=self._config.cluster.step_timeout_s,
                    what=lambda: f"a startable slot ({self._slots.num_open} open, {self.num_in_flight} in flight)",
                )
                for worker, slots in shares:
                    streams.create_task(self._stream(worker, slots))

    def _assign(self) -> list[tuple[Worker, list[int]]]:
        """Start what may start, each slot on the least loaded eligible worker."""
        minimum = self._slots.minimum_engine_version
        room = {
            w: self._config.rollout.max_in_flight - self._in_flight[w]
            for w in self._pool.healthy
            if w.version >= minimum
        }
        shares: dict[Worker, list[int]] = {}
        for slot in self._slots.startable(sum(r for r in room.values() if r > 0)):
            worker = max(room, key=lambda w: room[w])
            room[worker] -= 1
            shares.setdefault(worker, []).append(slot)
        calls: list[tuple[Worker, list[int]]] = []
        for worker, slots in shares.items():
            for slot in slots:
                self._slots.start(slot, worker.version)
            self._in_flight[worker] += len(slots)
            calls += [(worker, [slot]) for slot in slots if slot in self._attempts]  # a bad prompt fails alone
            fresh = [slot for slot in slots if slot not in self._attempts]
            calls += [(worker, fresh)] if fresh else []
        return calls

    async def _stream(self, worker: Worker, slots: list[int]) -> None:
        """Read one generation stream to its end; what it did not deliver is started again."""
        missing = set(slots)
        requests = self._prompts.requests_for(slots, [self._attempts.get(slot, 0) for slot in slots])
        stream = worker.handle.generate.options(
            num_returns="streaming", _generator_backpressure_num_objects=STREAM_ITEMS_AHEAD
        ).remote(requests, self._sampling)
        try:
            await self._read(worker, stream, missing)
        except ray.exceptions.ActorDiedError as error:
            self._pool.mark_dead(worker, str(error).splitlines()[0])
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._events.add(
                "rollout_failed", worker=worker.name, slots=sorted(missing), reason=_first_line(error)
            )
        except asyncio.CancelledError:
            ray.cancel(stream)
            raise
        for slot in missing:
            self._in_flight[worker] -= 1
            self._retry(slot)
        self._signal.changed()

    async def _read(self, worker: Worker, stream: Any, missing: set[int]) -> None:
        timeout_s = self._config.cluster.rollout_timeout_s
        while True:
            what = f"the next of {len(missing)} rollouts from {worker.name}"
            item: RolloutNote | EndOfStream = await wait_for(
                await _next(stream, what, timeout_s), timeout_s=timeout_s, what=what
            )
            if isinstance(item, EndOfStream):
                assert not missing, f"{worker.name} ended its stream without slots {sorted(missing)}"
                return
            table = await _next(stream, what, timeout_s)
            missing.remove(item.slot)
            self._in_flight[worker] -= 1
            self._attempts.pop(item.slot, None)
            self._meter.add(item.num_response_tokens)
            self._signal.changed()
            await self._deliver(Rollout(item, table))

    def fail(self, slot: int) -> None:
        """Start a slot again whose rollouts were lost after generation."""
        self._retry(slot)
        self._signal.changed()

    def _retry(self, slot: int) -> None:
        self._slots.fail(slot)
        self._attempts[slot] = self._attempts.get(slot, 0) + 1
        if self._attempts[slot] >= self._config.rollout.max_attempts:
            prompt_id = self._prompts.give_up(slot)
            self.num_given_up += 1
            self._attempts[slot] = 0
            self._events.add("prompt_given_up", prompt_id=prompt_id, slot=slot, reason="failed")


async def _next(stream: Any, what: str, timeout_s: float) -> Any:
    """The next reference of a stream; its end without an `EndOfStream` is an error."""
    try:
        return await wait_for(stream.__anext__(), timeout_s=timeout_s, what=what)
    except StopAsyncIteration:
        raise ray.exceptions.RayError(f"the stream was cut off while waiting for {what}") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
