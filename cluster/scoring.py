"""The scoring stage: finished rollouts go to teachers in token-budget batches, scored slots are kept for training.

Scoring is pure, so a failed call is repeated on another teacher. A synchronous run (`max_staleness` 0) gathers a
whole training batch and scores it in slot order, which makes it repeatable to the bit.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from cluster.config import RunConfig
from cluster.events import Events, reason_of
from cluster.metering import Meter
from cluster.notes import RolloutNote, ScoreNote
from cluster.pool import Pool, Worker
from cluster.rollouts import Rollout
from cluster.slots import Slots
from cluster.waiting import NO_LIMIT_S, Signal, wait_for

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Scoring calls that may fail for one batch before its rollouts are generated again."""


@dataclass(frozen=True)
class ScoredSlot:
    """A slot ready for training: its note, and the reference of its scored table."""

    note: RolloutNote
    table: Any  # ray.ObjectRef


class ScoreStage:
    """Hands rollouts to the least loaded teacher; keeps scored slots until the learner takes them."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pool: Pool,
        slots: Slots,
        accept: Callable[[int], None],
        lose: Callable[[int, str], None],
        signal: Signal,
        events: Events,
    ) -> None:
        """`accept(slot)` is told of every scored slot, `lose(slot, reason)` of those to be generated anew."""
        self._config = config
        self._pool = pool
        self._slots = slots
        self._accept = accept
        self._lose = lose
        self._signal = signal
        self._events = events
        self._queue: deque[Rollout] = deque()
        self._gathered: list[Rollout] = []  # with fixed batches, until the batch is complete
        self._num_called = 0  # rollouts with a teacher
        self._scored: dict[int, ScoredSlot] = {}
        self._capacity = 2 * config.batch_size
        self._fixed_batches = config.max_staleness == 0
        self._meter = Meter()

    @property
    def num_queued(self) -> int:
        """Rollouts that wait for a teacher."""
        return len(self._queue)

    @property
    def num_scored(self) -> int:
        """Slots that wait for training."""
        return len(self._scored)

    @property
    def is_busy(self) -> bool:
        """True while rollouts wait for scores: queued or with a teacher."""
        return bool(self._queue) or any(worker.num_calls for worker in self._pool.healthy)

    def take_throughput(self) -> float:
        """Tokens (prompt and response) scored per second since this was last asked."""
        return self._meter.take()

    async def put(self, rollout: Rollout) -> None:
        """Queue a rollout; waits while the queue is full (back-pressure on the rollout streams)."""
        await self._signal.until(
            lambda: len(self._queue) < self._capacity,
            timeout_s=NO_LIMIT_S,
            what=lambda: f"room in the score queue ({len(self._queue)} queued)",
        )
        if self._fixed_batches:
            self._gather(rollout)
        else:
            self._queue.append(rollout)
        self._signal.changed()

    def _gather(self, rollout: Rollout) -> None:
        """Queue what was gathered, in slot order, once every slot of the batch is here or further on."""
        self._gathered.append(rollout)
        num_here = len(self._gathered) + len(self._queue) + self._num_called + len(self._scored)
        if num_here == self._config.batch_size:
            self._queue.extend(sorted(self._gathered, key=lambda r: r.note.slot))
            self._gathered.clear()

    def take(self, slots: list[int]) -> list[ScoredSlot]:
        """Remove and return the scored slots of a batch."""
        return [self._scored.pop(slot) for slot in slots]

    async def run(self) -> None:
        """Score as long as the pipeline runs."""
        async with asyncio.TaskGroup() as calls:
            while True:
                worker, batch = await self._signal.until(
                    self._assign,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: f"rollouts to score ({len(self._queue)} queued)",
                )
                calls.create_task(self._score(worker, batch, calls))

    def _assign(self) -> tuple[Worker, list[Rollout]] | None:
        """Take the next token-budget batch if a teacher has room for a call."""
        # Calls side by side would meet in the engine's steps in an order of chance.
        limit = 1 if self._fixed_batches else self._config.teacher.max_calls_in_flight
        free = [worker for worker in self._pool.healthy if worker.num_calls < limit]
        if not self._queue or not free:
            return None
        batch = [self._queue.popleft()]
        budget = self._config.teacher.max_batch_tokens - batch[0].note.num_tokens
        while self._queue and self._queue[0].note.num_tokens <= budget:
            batch.append(self._queue.popleft())
            budget -= batch[-1].note.num_tokens
        return self._book(min(free, key=lambda w: w.outstanding_tokens), batch)

    def _book(self, worker: Worker, batch: list[Rollout]) -> tuple[Worker, list[Rollout]]:
        worker.num_calls += 1
        worker.outstanding_tokens += sum(rollout.note.num_tokens for rollout in batch)
        self._num_called += len(batch)
        return worker, batch

    def _unbook(self, worker: Worker, batch: list[Rollout]) -> None:
        worker.num_calls -= 1
        worker.outstanding_tokens -= sum(rollout.note.num_tokens for rollout in batch)
        self._num_called -= len(batch)

    async def _score(
        self, worker: Worker, batch: list[Rollout], calls: asyncio.TaskGroup, attempt: int = 0
    ) -> None:
        """Make one scoring call; a failed one is repeated in `calls`."""
        tables = [rollout.table for rollout in batch]
        refs = worker.handle.score.options(num_returns=1 + len(tables)).remote(*tables)
        what = f"{worker.name} scoring {len(batch)} slots"
        try:
            note: ScoreNote = await wait_for(refs[0], timeout_s=self._config.cluster.score_timeout_s, what=what)
        except (RayError, TimeoutError) as error:
            reason = reason_of(error)
            self._events.add(
                "scoring_failed", worker=worker.name, slots=len(batch), attempt=attempt, reason=reason
            )
            await self._pool.examine(worker, error)
            self._unbook(worker, batch)
            self._repeat(worker, batch, calls, attempt, reason)
        else:
            self._unbook(worker, batch)
            self._meter.add(note.num_tokens)
            self._keep(batch, refs[1:])
        self._signal.changed()

    def _keep(self, batch: list[Rollout], refs: list[Any]) -> None:
        for rollout, ref in zip(batch, refs, strict=True):
            self._scored[rollout.note.slot] = ScoredSlot(rollout.note, ref)
            self._slots.finish(rollout.note.slot)
            self._accept(rollout.note.slot)

    def _repeat(
        self, failed: Worker, batch: list[Rollout], calls: asyncio.TaskGroup, attempt: int, reason: str
    ) -> None:
        """Repeat a failed call, if possible on another teacher; after some attempts generate the slots anew."""
        if attempt + 1 >= MAX_ATTEMPTS:
            for rollout in batch:
                self._lose(rollout.note.slot, reason)
            return
        others = [worker for worker in self._pool.healthy if worker is not failed] or self._pool.healthy
        for part in [batch] if failed.is_dead else [[rollout] for rollout in batch]:  # a bad rollout fails alone
            other = min(others, key=lambda w: w.outstanding_tokens)
            calls.create_task(self._score(*self._book(other, part), calls, attempt + 1))
