"""A lane of the scoring stage: the rollouts that wait for one model, and the pool of its workers.

Rollouts leave a lane in token-budget batches, for the least loaded worker that may take a call.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from cluster.pool import Pool
from cluster.worker import Worker
from controller.meters import DurationMeter, MeteredQueue, RateMeter, WorkMeter
from settings.engine import ScorerConfig
from transport.notes import RolloutNote


@dataclass(frozen=True)
class Rollout:
    """A finished slot: its note, and the reference of its table, scored by those lanes it has passed."""

    note: RolloutNote
    table: Any  # ray.ObjectRef


Assignment = tuple[Worker, list[Rollout]]
"""A worker, and what it is to score in one call."""


class Lane:
    """One model's queue and workers."""

    def __init__(self, pool: Pool, config: ScorerConfig, *, capacity: int, has_fixed_batches: bool) -> None:
        """`capacity` is the length of queue from which on nothing more should be put in."""
        self.pool = pool
        self.queue: MeteredQueue[Rollout] = MeteredQueue(slot_of)
        self.suspects: deque[Rollout] = deque()
        """Rollouts that were there when a worker died: each is scored alone, on a worker given nothing else."""
        self._reserved: Worker | None = None
        self.num_called = 0  # rollouts with a worker
        self.meter = RateMeter()  # tokens
        self.slots = RateMeter()
        self.held_up = DurationMeter()
        """Producers that the full queue holds up: rollout streams, or the teachers before the reference."""
        self.max_calls = 1 if has_fixed_batches else config.max_calls_in_flight
        """Calls a worker serves side by side. They would meet in the engine's steps in an order of chance, so with
        fixed batches it is one."""
        self.work = WorkMeter()
        self._max_batch_tokens = config.max_batch_tokens
        self._capacity = capacity

    @property
    def is_full(self) -> bool:
        """True while the queue has its full length."""
        return len(self.queue) + len(self.suspects) >= self._capacity

    @property
    def is_busy(self) -> bool:
        """True while rollouts are queued or with a worker."""
        return self.num_here > 0

    @property
    def num_here(self) -> int:
        """Rollouts queued or with a worker."""
        return len(self.queue) + len(self.suspects) + self.num_called

    @property
    def could_call(self) -> bool:
        """True while rollouts are queued and a worker may take a call."""
        return len(self.queue) > 0 and bool(self._free())

    def _free(self) -> list[Worker]:
        most, reserved = self.max_calls, self._reserved
        return [w for w in self.pool.workers if w.num_calls < most and w.is_healthy and w is not reserved]

    def _assign_suspect(self) -> Assignment | None:
        """Take the next suspect if the worker reserved for them is free; reserve one if there are any."""
        if not self.suspects:
            if self._reserved is not None and not self._reserved.num_calls:
                self._reserved = None
            return None
        if self._reserved not in self.pool.healthy:
            self._reserved = min(self.pool.healthy, key=lambda worker: worker.num_calls, default=None)
        if self._reserved is None or self._reserved.num_calls:
            return None
        return self.book(self._reserved, [self.suspects.popleft()])

    def assign(self) -> Assignment | None:
        """Take the next token-budget batch if a worker may take a call; suspects come first, one by one."""
        suspect = self._assign_suspect()
        if suspect is not None:
            return suspect
        free = self._free() if self.queue else []  # this runs for every rollout that ends
        if not free:
            return None
        batch = [self.queue.popleft()]
        budget = self._max_batch_tokens - batch[0].note.num_tokens
        while self.queue and self.queue.first.note.num_tokens <= budget:
            batch.append(self.queue.popleft())
            budget -= batch[-1].note.num_tokens
        return self.book(least_loaded(free), batch)

    def book(self, worker: Worker, batch: list[Rollout]) -> Assignment:
        """Count a call of the worker as begun."""
        worker.num_calls += 1
        self.work.hold(worker.name, worker.num_calls)
        worker.outstanding_tokens += sum(rollout.note.num_tokens for rollout in batch)
        self.num_called += len(batch)
        return worker, batch

    def unbook(self, worker: Worker, batch: list[Rollout]) -> None:
        """Count a call of the worker as ended."""
        worker.num_calls -= 1
        self.work.hold(worker.name, worker.num_calls)
        worker.outstanding_tokens -= sum(rollout.note.num_tokens for rollout in batch)
        self.num_called -= len(batch)

    def rebook(self, failed: Worker, batch: list[Rollout]) -> list[Assignment]:
        """Book what a failed call held for another try, if possible on other workers.

        Unless the worker was retired, every rollout gets a call of its own, so that a bad one fails alone. While
        no worker is healthy, the rollouts go back to the head of the queue.
        """
        healthy = [worker for worker in self.pool.healthy if worker is not self._reserved] or self.pool.healthy
        others = [worker for worker in healthy if worker is not failed] or healthy
        if not others:
            self.queue.extendleft(reversed(batch))
            return []
        parts = [batch] if failed.is_retired else [[rollout] for rollout in batch]
        return [self.book(least_loaded(others), part) for part in parts]


def slot_of(rollout: Rollout) -> int:
    """The slot whose rollout it is."""
    return rollout.note.slot


def least_loaded(workers: list[Worker]) -> Worker:
    """The worker with the fewest tokens outstanding; the first of several."""
    return min(workers, key=lambda worker: worker.outstanding_tokens)
