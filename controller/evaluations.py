"""Evaluations during a run: by weight version, on workers of their own or on a borrowed rollout worker.

    own pool         its workers load version v, evaluate it, and load a newer one only for the next evaluation
    borrowed worker  one rollout worker takes no new slot, finishes what it has, keeps (or loads) v, evaluates, and
                     then loads the newest version and takes slots again; the others continue meanwhile

A version that is to be evaluated stays in the object store until then, since its job holds the reference. One
evaluation runs at a time: what is due meanwhile is skipped, with an event, so that no more versions are held. The
slots know nothing of all this, so the staleness bound and the order of training are what they are without.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.pool import Pool
from cluster.waiting import NO_LIMIT_S, now, together
from cluster.worker import Worker
from controller.context import RunContext
from controller.weight_store import PublishedWeights, WeightStore
from evaluation.evaluation import Evaluation, EvaluationRun
from evaluation.results import KeptResults

logger = logging.getLogger(__name__)

BEFORE, DURING, AFTER = "student_before", "student", "student_after"
"""The student in `eval.jsonl`: at step 0, at a periodic evaluation, at the last step."""


class BorrowedWorkerLostError(Exception):
    """The worker that held the version is gone for good, and no other holds it."""


@dataclass(frozen=True, eq=False)
class Job:
    """One version to be evaluated."""

    model: str
    weights: PublishedWeights
    borrowed: Worker | None = None
    """The rollout worker that is borrowed for it; None: workers of their own, or all rollout workers."""

    @property
    def version(self) -> int:
        """The weight version, which is the step."""
        return self.weights.manifest.version


class Evaluations:
    """The stage that evaluates. Without an `evaluation` every call returns at once."""

    def __init__(
        self,
        context: RunContext,
        evaluation: Evaluation | None,
        *,
        weights: WeightStore,
    ) -> None:
        """`weights` are those of the rollout workers."""
        self._config = config = context.config
        self._evaluation = evaluation
        self._pools, self._rollout_pool = context.pools, context.pools["rollout"]
        self._folder = context.folder
        self._signal = signal = context.signal
        self._members = members = context.members
        self._events = events = context.events
        self._weights = weights
        self._own = own = context.pools.get("evaluation")
        self._own_weights = None
        if own is not None:
            self._own_weights = WeightStore(
                own, config=config.cluster, signal=signal, members=members, events=events
            )
        self._job: Job | None = None  # the one that runs, or begins to
        self._running: asyncio.Task[None] | None = None
        self._num_graded = 0
        self._began_at = 0  # version at which the incarnation began

    # -- what the pipeline calls --

    async def run(self) -> None:
        """Evaluate what is due as long as the pipeline runs; what runs at the end is abandoned."""
        async with asyncio.TaskGroup() as tasks:
            if self._own_weights is not None:
                tasks.create_task(self._own_weights.run())
            while True:
                job = await self._signal.until(
                    lambda: self._job, timeout_s=NO_LIMIT_S, what=lambda: "an evaluation (there need be none)"
                )
                await self._run_job(job)

    async def begin(self, version: int) -> None:
        """An incarnation begins at this version: evaluate what is due there and was not evaluated yet."""
        self._began_at = version
        if version == 0 and self._is_missing(BEFORE, 0):
            teachers = asyncio.ensure_future(self._evaluate_teachers())
            if self._own is None:
                await together([teachers, self._on_free_rollout_workers(BEFORE, teachers)])
            else:
                await together([teachers])
                self._start(BEFORE)
        elif version and self._is_missing(DURING, version):
            self.due(version)

    def due(self, version: int) -> None:
        """After a step: begin the evaluation of its version, the newest, if one is due."""
        every_steps = self._config.evaluation.every_steps
        is_due = every_steps > 0 and version % every_steps == 0 and version < self._config.max_steps
        if self._evaluation is None or not is_due or (self._job is not None and self._job.version == version):
            return
        if self._job is not None:
            self._skip(version, f"that of step {self._job.version} is not finished")
        elif self._own is not None:
            self._start(DURING)
        else:
            able = [worker for worker in self._rollout_pool.workers if worker.loads_weights]
            worker = min(able, key=lambda worker: (not worker.is_healthy, worker.num_slots), default=None)
            if worker is None:
                self._skip(version, "no rollout worker is alive")
            else:
                self._start(DURING, borrowed=worker)

    async def finish(self) -> None:
        """The last step is trained: wait for what runs, and evaluate the newest version."""
        if self._evaluation is None:
            return
        await self._idle()
        version = self._weights.version
        if version == self._began_at and not self._is_missing(AFTER, version):
            return  # it was resumed after its last evaluation
        if self._own is None:
            await self._on_all_rollout_workers(AFTER)
        else:
            self._start(AFTER)
            await self._idle()

    async def abandon(self, reason: str, *, above: int = -1) -> None:
        """The learner falls back: give up an evaluation of a version above `above`; on a borrowed worker any.

        A borrowed worker's weights are invalidated with those of the others, and it loads what comes next.
        """
        job, running = self._job, self._running
        if job is not None and (job.borrowed is not None or job.version > above):
            self._job = None
            if running is not None:
                running.cancel()
                await asyncio.wait({running})
            self._end(job)
            self._events.add("evaluation_abandoned", model=job.model, step=job.version, reason=reason)

    def status(self) -> dict[str, Any] | None:
        """What is being evaluated, as JSON values; None for nothing."""
        if self._job is None or self._evaluation is None:
            return None
        return {
            "model": self._job.model,
            "step": self._job.version,
            "graded": self._num_graded,
            "problems": len(self._evaluation.problems),
        }

    # -- jobs --

    def _start(self, model: str, borrowed: Worker | None = None) -> None:
        weights = self._weights.latest
        if self._evaluation is None or weights is None:
            return
        self._job = Job(model, weights, borrowed)
        self._num_graded = 0
        if borrowed is not None:
            borrowed.pinned = weights
        if self._own_weights is not None:
            self._own_weights.pin(weights)
        name = None if borrowed is None else borrowed.name
        self._events.add("evaluation_started", model=model, step=self._job.version, worker=name)
        self._members.changed()

    def _skip(self, version: int, reason: str) -> None:
        logger.warning("the evaluation of step %d is skipped: %s", version, reason)
        self._events.add("evaluation_skipped", step=version, reason=reason)

    async def _run_job(self, job: Job) -> None:
        """Carry a job out; returns early if it is abandoned."""
        self._running = running = asyncio.create_task(self._carry_out(job))
        try:
            await asyncio.wait({running})
        finally:
            self._running = None
            if not running.done():  # the run ends
                self._job = None
                running.cancel()
                await asyncio.wait({running})
                self._end(job)
                self._events.add("evaluation_abandoned", model=job.model, step=job.version, reason="the run ends")
        if not running.cancelled():
            running.result()

    async def _carry_out(self, job: Job) -> None:
        pool = self._own or self._rollout_pool
        try:
            await self._evaluate(job.model, job.version, pool, lambda: self._ready(job, pool))
        except* BorrowedWorkerLostError as lost:
            self._skip(job.version, str(lost.exceptions[0]))
        self._job = None
        self._end(job)

    def _end(self, job: Job) -> None:
        """Give the workers of a job back, and free its version."""
        if job.borrowed is not None:
            job.borrowed.pinned = None
        if self._own_weights is not None:
            self._own_weights.unpin()
        self._members.changed()

    async def _ready(self, job: Job, pool: Pool) -> list[Worker]:
        """Wait for workers that hold the job's version; a borrowed one must have finished its slots."""

        def found() -> list[Worker]:
            worker = job.borrowed
            if worker is None:
                return [each for each in pool.healthy if each.version == job.version]
            if not worker.is_wanted:
                raise BorrowedWorkerLostError(f"{worker.name}, which held v{job.version}, is {worker.state}")
            is_ready = worker.is_healthy and worker.version == job.version and worker.num_slots == 0
            return [worker] if is_ready else []

        return await self._signal.until(
            found, timeout_s=NO_LIMIT_S, what=lambda: f"an engine that holds v{job.version} to evaluate it"
        )

    async def _idle(self) -> None:
        await self._signal.until(
            lambda: self._job is None, timeout_s=NO_LIMIT_S, what=lambda: f"the evaluation {self.status()}"
        )

    # -- evaluations that training waits for --

    async def _evaluate_teachers(self) -> None:
        if self._evaluation is None or not self._config.evaluation.teacher:
            return
        for role in self._config.teacher_of_role:
            if self._is_missing(role, 0):
                pool = self._pools[role]
                await self._evaluate(role, None, pool, pool.some_healthy)

    async def _on_free_rollout_workers(self, model: str, teachers: asyncio.Future[None]) -> None:
        """Evaluate beside the teachers once the first rollouts are made, at the latest after the teachers.

        What is sampled first is then sampled by engines that do nothing else, in every run alike.
        """
        pool, was_busy = self._rollout_pool, False

        def is_free() -> bool:
            nonlocal was_busy
            is_busy = any(worker.num_slots for worker in pool.workers)
            was_busy |= is_busy
            return teachers.done() or (was_busy and not is_busy)

        teachers.add_done_callback(lambda _: self._signal.changed())
        await self._signal.until(
            is_free, timeout_s=NO_LIMIT_S, what=lambda: "rollouts or the teachers' evaluation"
        )
        await self._on_all_rollout_workers(model, after=teachers)

    async def _on_all_rollout_workers(self, model: str, after: asyncio.Future[None] | None = None) -> None:
        """Evaluate the newest version on every healthy rollout worker; no newer one comes meanwhile.

        What it came to is recorded once `after` is done.
        """
        if self._evaluation is None:
            return
        pool, version = self._rollout_pool, self._weights.version

        async def all_loaded() -> list[Worker]:
            await self._weights.all_loaded()
            return await pool.some_healthy()

        await self._evaluate(model, version, pool, all_loaded, after)

    async def _evaluate(
        self,
        model: str,
        version: int | None,
        pool: Pool,
        ready: Callable[[], Awaitable[list[Worker]]],
        after: asyncio.Future[None] | None = None,
    ) -> None:
        """Evaluate on the workers that `ready` returns; without a version it is a teacher, before training."""
        evaluation, step, start = self._evaluation, version or 0, now()
        assert evaluation is not None
        kept = KeptResults(self._folder, model if version is None else f"step_{step}", self._events)
        kept.begin()
        run = EvaluationRun(
            evaluation, self._config.cluster, keep=kept.keep, show=self._note_graded, version=version
        )
        try:
            results = await run.run(pool, ready)
        except BaseException:
            kept.discard()
            raise
        await asyncio.to_thread(kept.finish)
        seconds = round(now() - start, 3)
        if after is not None:
            await asyncio.shield(after)
        for result in results:
            row = {"step": step, "model": model, "weight_version": version, **result.row()}
            self._folder.add_evaluation(row)
            details = {"benchmark": result.benchmark, "avg_at_k": result.avg_at_k, "seconds": seconds}
            self._events.add("evaluated", model=model, step=step, **details)

    def _note_graded(self, num_graded: int) -> None:
        self._num_graded = num_graded
        self._signal.changed()  # whoever waits for training sees progress

    def _is_missing(self, model: str, step: int) -> bool:
        names = {problem.benchmark for problem in self._evaluation.problems} if self._evaluation else set[str]()
        return not names <= self._folder.evaluated(model, step)
