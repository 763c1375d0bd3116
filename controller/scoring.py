"""The scoring stage: rollouts go to the teacher of their source, then to the reference model if there is one.

    rollouts --> lane of a teacher --(scored)--> lane of the reference --(one column more)--> kept for training

Each lane is a queue with the pool of one model; a call never mixes teachers. Scoring is pure, so a failed call is
repeated on another worker of its lane. A synchronous run (`max_staleness` 0) gathers a whole training batch before
each of the two steps and scores it in slot order, which makes it repeatable to the bit.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ray.exceptions import RayError

from cluster.errors import is_lost
from cluster.waiting import NO_LIMIT_S, wait_for
from cluster.worker import Worker
from controller.context import RunContext
from controller.failures import NO_FAILURES, Failures, Refusal
from controller.lanes import Assignment, Lane, Rollout, slot_of
from controller.meters import WaitMeter
from controller.slots import Slots
from records.events import reason_of
from settings.teachers import role_of_source
from transport.notes import ScoreNote
from transport.parcels import plan_parcels

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Scoring calls that may fail for a rollout on living workers before it is generated again."""

REFERENCE = "reference"


class ScoreStage:
    """Hands rollouts to the least loaded worker of their lane; keeps scored slots until the learner takes them."""

    def __init__(
        self,
        context: RunContext,
        *,
        slots: Slots,
        accept: Callable[[int], None],
        lose: Callable[[int, BaseException, Failures], None],
        token_bytes: int,
    ) -> None:
        """`accept(slot)` is told of every scored slot, `lose(slot, error, failures)` of those to generate anew.

        `token_bytes` is a token's size in a scored table.
        """
        self._config = config = context.config
        self._signal, self._events = context.signal, context.events
        self._slots = slots
        self._accept = accept
        self._lose = lose
        self._token_bytes = token_bytes
        self._fixed_batches = config.max_staleness == 0
        self._role_of_source = role_of_source(config)
        self.capacity = 2 * config.batch_size
        """Length of every queue from which on its producers are held up."""
        self._lanes = {
            role: Lane(context.pools[role], each, capacity=self.capacity, has_fixed_batches=self._fixed_batches)
            for role, each in config.scorers.items()
        }
        self._teachers = [lane for role, lane in self._lanes.items() if role != REFERENCE]
        self._reference = self._lanes.get(REFERENCE)
        # With fixed batches, until the batch is complete:
        self._gathered: list[Rollout] = []  # before the teachers
        self._gathered_for_reference: list[Rollout] = []
        self._scored: dict[int, Rollout] = {}
        self._failures: dict[int, Failures] = {}  # of slots whose scoring failed and has not succeeded yet
        self.scored_waits = WaitMeter()
        """Of scored slots, until the learner takes them."""

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """The lanes by role."""
        return self._lanes

    @property
    def num_queued(self) -> int:
        """Rollouts that wait for a worker, in all lanes."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    @property
    def num_scored(self) -> int:
        """Slots that wait for training."""
        return len(self._scored)

    @property
    def is_busy(self) -> bool:
        """True while rollouts wait for scores: queued or with a worker."""
        return any(lane.is_busy for lane in self._lanes.values())

    @property
    def num_queued_of_role(self) -> dict[str, int]:
        """Rollouts that wait for a worker of each role."""
        return {role: len(lane.queue) for role, lane in self._lanes.items()}

    def take_throughputs(self) -> dict[str, float]:
        """Tokens (prompt and response) scored per second since this was last asked: of all teachers together
        under `teacher`, and of each other role."""
        rates = {role: lane.meter.take() for role, lane in self._lanes.items()}
        reference = {REFERENCE: rates.pop(REFERENCE)} if self._reference is not None else {}
        return {**rates, "teacher": sum(rates.values()), **reference}

    def take_work(self) -> dict[str, dict[str, float]]:
        """What each role did since this was last asked (`WorkMeter.take`)."""
        return {role: lane.work.take() for role, lane in self._lanes.items()}

    async def put(self, rollout: Rollout) -> None:
        """Queue a rollout; waits while its teacher's queue is full (back-pressure on the rollout streams)."""
        lane = self._lane_of(rollout)
        if lane.is_full:
            with lane.held_up.lasting():
                await self._signal.until(
                    lambda: not lane.is_full,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: f"space in the queue of {lane.pool.role} ({len(lane.queue)} queued)",
                )
        if self._fixed_batches:
            self._gathered.append(rollout)
            self._release_gathered()
        else:
            lane.queue.append(rollout)
        self._signal.changed()

    def _lane_of(self, rollout: Rollout) -> Lane:
        return self._lanes[self._role_of_source[rollout.note.source] if self._role_of_source else "teacher"]

    def _release_gathered(self) -> None:
        """Queue what was gathered, in slot order, once every slot of the batch is here or further on."""
        with_reference = len(self._gathered_for_reference) + len(self._scored)
        with_reference += 0 if self._reference is None else self._reference.num_here
        with_teachers = len(self._gathered) + sum(lane.num_here for lane in self._teachers)
        if with_teachers + with_reference == self._config.batch_size:
            for rollout in sorted(self._gathered, key=slot_of):
                self._lane_of(rollout).queue.append(rollout)
            self._gathered.clear()
        if with_reference == self._config.batch_size and self._reference is not None:
            self._reference.queue.extend(sorted(self._gathered_for_reference, key=slot_of))
            self._gathered_for_reference.clear()

    def take(self, slots: list[int]) -> list[Rollout]:
        """Remove and return the scored slots of a batch."""
        self.scored_waits.leave(*slots)
        return [self._scored.pop(slot) for slot in slots]

    def put_back(self, scored: Iterable[Rollout]) -> None:
        """Keep scored slots again that were taken and not trained."""
        for each in scored:
            self._scored[each.note.slot] = each
            self.scored_waits.enter(each.note.slot)

    async def run(self) -> None:
        """Score as long as the pipeline runs."""
        async with asyncio.TaskGroup() as calls:
            while True:
                lane, assignment = await self._signal.until(
                    self._assign,
                    timeout_s=NO_LIMIT_S,
                    what=lambda: f"rollouts to score ({self.num_queued} queued)",
                )
                calls.create_task(self._score(lane, *assignment, calls))

    def _assign(self) -> tuple[Lane, Assignment] | None:
        """The next call of any lane, the reference first; teachers pause while the reference's queue is full."""
        reference = [] if self._reference is None else [self._reference]
        is_held_up = any(lane.is_full for lane in reference)
        for lane in reference:
            lane.held_up.set(sum(teacher.could_call for teacher in self._teachers) if is_held_up else 0)
        for lane in [*reference, *([] if is_held_up else self._teachers)]:
            assignment = lane.assign()
            if assignment is not None:
                return lane, assignment
        return None

    async def _score(self, lane: Lane, worker: Worker, batch: list[Rollout], calls: asyncio.TaskGroup) -> None:
        """Make one scoring call; a failed one is repeated in `calls`."""
        with lane.pool.use(worker, "score"):
            await self._score_once(lane, worker, batch, calls)
        self._signal.changed()

    async def _score_once(
        self, lane: Lane, worker: Worker, batch: list[Rollout], calls: asyncio.TaskGroup
    ) -> None:
        parcels = plan_parcels((r.note.slot, self._token_bytes * r.note.num_tokens) for r in batch)
        tables = dict.fromkeys(rollout.table for rollout in batch)
        refs = worker.handle.score.options(num_returns=1 + len(parcels)).remote(*tables, parcels=parcels)
        what = f"{worker.name} scoring {len(batch)} slots"
        note: ScoreNote | None = None
        failure: BaseException | None = None
        try:
            timeout_s = self._config.cluster.score_timeout_s
            note = await wait_for(refs[0], timeout_s=timeout_s, what=what, ended=worker.ended)
        except (RayError, TimeoutError) as error:
            failure = error
            reason = reason_of(error)
            self._events.add("scoring_failed", worker=worker.name, slots=len(batch), reason=reason)
            await lane.pool.examine(worker, error)
        finally:
            lane.unbook(worker, batch)
        if failure is not None or note is None:
            self._repeat(lane, worker, batch, calls, failure or RayError("no answer"))
            return
        lane.pool.succeed(worker)
        for rollout in batch:
            failures = self._failures.pop(rollout.note.slot, None)
            refusal = failures.blame(worker) if failures is not None else None
            if refusal is not None:
                lane.pool.blame(refusal.worker, refusal.reason)
        lane.meter.add(note.num_tokens)
        lane.slots.add(len(batch))
        lane.work.add(note.num_tokens)
        table_of = {slot: ref for parcel, ref in zip(parcels, refs[1:], strict=True) for slot in parcel}
        self._hand_on(lane, [Rollout(old.note, table_of[old.note.slot]) for old in batch])

    def _hand_on(self, lane: Lane, batch: list[Rollout]) -> None:
        """What a teacher scored goes to the reference, if there is one; what is complete is kept."""
        if self._reference is None or lane is self._reference:
            for rollout in batch:
                self._keep(rollout)
        elif self._fixed_batches:
            self._gathered_for_reference += batch
            self._release_gathered()
        else:
            self._reference.queue.extend(batch)

    def _keep(self, rollout: Rollout) -> None:
        slot = rollout.note.slot
        self._scored[slot] = rollout
        self.scored_waits.enter(slot)
        self._slots.finish(slot)
        self._accept(slot)

    def _repeat(
        self, lane: Lane, failed: Worker, batch: list[Rollout], calls: asyncio.TaskGroup, error: BaseException
    ) -> None:
        """Repeat a failed call, if possible on another worker.

        Rollouts that were there when a worker died are scored alone from then on. What fails too often, has killed
        workers while it was alone, or is lost, is generated anew.
        """
        again: list[Rollout] = []
        refusal = Refusal(failed, reason_of(error))
        for rollout in batch:
            failures = self._failures.get(rollout.note.slot, NO_FAILURES)
            if len(batch) == 1 and is_lost(error) and not failed.is_gone:  # it is this rollout's table
                failures = replace(failures, num_lost=self._config.rollout.max_lost_attempts)
            else:
                failures = failures.after(error, failed, refusal, num_together=len(batch))
            self._failures[rollout.note.slot] = failures
            limit = self._config.rollout.max_lost_attempts
            if failures.verdict(max_refused=MAX_ATTEMPTS, max_lost=limit) is None:
                again.append(rollout)
            else:
                self._failures.pop(rollout.note.slot)
                self._lose(rollout.note.slot, error, failures)
        if failed.is_gone and not failed.is_retired:
            lane.suspects.extend(again)
            return
        for assignment in lane.rebook(failed, again):
            calls.create_task(self._score(lane, *assignment, calls))
