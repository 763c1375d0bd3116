"""The controller: one asyncio loop that moves references from stage to stage and never reads a token.

    slots --> RolloutStage --(note, table ref)--> ScoreStage --(note, table ref)--> batch --> LearnerGroup
      ^            ^                                                                              |
      |            '------ engines load v+1 <--- WeightStore <--- buckets, manifest --------------'
      '------------------- version v+1 opens the next slots <----------------------------------- '

Who waits for whom, and what unblocks it:
    rollout engines   the start window is used up             a batch is trained (version + 1)
    rollout streams   their teacher's queue is full           that teacher takes rollouts
    teachers          no rollouts                             an engine finishes a slot
    teachers          the reference's queue is full           the reference takes scored rollouts
    learner           no batch, or a deadline would be lost   a slot is scored
    slow engines      nothing: they skip versions             -

An incarnation is the run from one frontier on: its slots, rollouts, scores and weights. When the learner is lost,
the incarnation is abandoned: the learner restarts from the last checkpoint, and a new one begins there. The
engines live on; what they did for the abandoned one is dropped.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from actors.engine import Sampling
from cluster.autoscaling import Cluster, RayCluster
from cluster.balancer import Balancer
from cluster.scaling import Scaling
from cluster.supervisor import Supervisor
from cluster.waiting import now
from controller.checkpointing import Checkpointer
from controller.context import RunContext
from controller.evaluations import Evaluations
from controller.flow import Flow, StepTimes
from controller.learner_group import LearnerGroup, LearnerLostError, TablesLostError
from controller.meters import WastedTokens
from controller.recovery import Progress, Recovery, first_of
from controller.rollouts import Prompts, Rollout, RolloutStage
from controller.samples import Samples
from controller.scoring import ScoreStage
from controller.slots import Slots
from controller.status import progress_status
from controller.weight_store import WeightStore
from evaluation.evaluation import Evaluation
from records.events import reason_of
from reporting.advisor import RECENT_STEPS
from transport.batches import SAMPLED
from transport.notes import StepResult

logger = logging.getLogger(__name__)

FIRST_STEPS = 3
"""If none of these has a gradient that moves the weights, that is said."""

Restore = Callable[[str, int], Awaitable[Progress]]
"""Loads the last checkpoint into a restarted learner: (reason, the abandoned incarnation)."""


class Pipeline:
    """All stages of a run. `run()` returns when `max_steps` are trained or after `stop()`."""

    async def run(self) -> None:
        """Run all stages until training ends, or is stopped; an error in any of them ends the run."""
        self._running = running = asyncio.current_task()
        assert running is not None
        if self._is_stopping and not self.slots.done:
            return
        try:
            await self._run_stages()
        except asyncio.CancelledError:
            if not self._ends_at_once:
                raise
            running.uncancel()

    async def _run_stages(self) -> None:
        async with asyncio.TaskGroup() as stages:
            every_stage = (self._weights, self.scaling, self._supervisor, self._balancer, self._evaluations)
            running = [stages.create_task(stage.run()) for stage in every_stage]
            if self._checkpointer is not None:
                running.append(stages.create_task(self._checkpointer.run()))
            while (lost := await self._run_incarnation()) is not None:
                await self._fall_back(lost)
            for stage in running:
                stage.cancel()

    async def _run_incarnation(self) -> LearnerLostError | None:
        """Train from the frontier to the end; returns early if the learner is lost."""
        try:
            async with asyncio.TaskGroup() as stages:
                every_stage = (self._rollouts, self._scoring, self._flow)
                running = [stages.create_task(stage.run()) for stage in every_stage]
                await self._train()
                for stage in running:
                    stage.cancel()
        except BaseExceptionGroup as errors:
            lost, others = errors.split(LearnerLostError)
            if lost is None or others is not None or self._restore is None:
                raise
            return first_of(lost)
        return None

    async def _train(self) -> None:
        """Take the steps of an incarnation: batch, gradient, new weights, until the run is done or stopped."""
        await self._publish()
        await self._evaluations.begin(self.slots.version)
        started = now()
        while not self.slots.done and not self._is_stopping:
            times = StepTimes()
            batch = await self._next_batch(times)
            if batch is None:
                break
            step = self.slots.version
            if step == 0 and self._samples is not None:  # of a synchronous run nothing else is in the engines now
                await self._samples.take("before", step)
            scored = self._scoring.take(batch)
            train_started = now()
            self._has_begun = True
            try:
                result = await self._learner.train(step, scored)
            except TablesLostError as lost:
                self._take_back(scored, lost)
                continue
            times.train_s = now() - train_started
            self.slots.train(batch)
            self._flow.open_slots()
            times.publish_s = await self._publish()
            times.step_s = now() - started
            self._record(result, scored, times)
            started = now()
            await self._after_step(result)
        await self._finish()

    async def _next_batch(self, times: StepTimes) -> list[int] | None:
        """Wait for a batch that the deadlines allow; None if the run is to stop.

        LearnerLostError as soon as the learner is known to be dead: it is brought back while there is no batch.
        """
        since = now()
        was_scoring = self._scoring.is_busy

        def ready() -> tuple[list[int] | None] | None:
            nonlocal since, was_scoring
            self._learner.check_is_whole()
            until = now()
            if was_scoring:
                times.score_wait_s += until - since
            else:
                times.rollout_wait_s += until - since
            since, was_scoring = until, self._scoring.is_busy
            if self._is_stopping:
                return (None,)
            batch = self.slots.next_batch()
            return None if batch is None else (batch,)

        (batch,) = await self._signal.until(
            ready,
            timeout_s=self._config.cluster.rollout_timeout_s,
            what=lambda: (
                f"a batch ({self.slots.num_finished} of {self._config.batch_size} slots scored, "
                f"{self._rollouts.num_in_flight} in flight, deadlines wait for {self.slots.blocking()[:8]})"
            ),
        )
        return batch

    def _take_back(self, scored: list[Rollout], lost: TablesLostError) -> None:
        """Keep what is left of a batch, and start again the slots whose tables are lost."""
        self._events.add("tables_lost", slots=[*lost.slots], reason=reason_of(lost.error))
        self._scoring.put_back(each for each in scored if each.note.slot not in lost.slots)
        for slot in lost.slots:
            self._rollouts.lose(slot, lost.error)

    async def _publish(self) -> float:
        """Publish the learner's weights as the current version; returns the seconds it took."""
        weights = await self._learner.publish(self._incarnation, self.slots.version)
        self._weights.publish(weights)
        return weights.publish_s

    def _record(self, result: StepResult, scored: list[Rollout], times: StepTimes) -> None:
        """Write metrics and ledger of the step that made the current version."""
        row = self._flow.step_row(result, scored, times)
        row |= self._waste.train(row, (slot.note.slot for slot in scored))
        uids = [uid for slot in scored for uid in slot.note.uids]
        self._folder.add_step(row, uids, was_skipped=result.was_skipped)
        self._recent.append(row)
        for show in self._show:
            show(row)

    async def _after_step(self, result: StepResult) -> None:
        """Evaluate and checkpoint where due; a row of skipped steps ends the run."""
        version, checkpointer = self.slots.version, self._checkpointer
        self._evaluations.due(version)  # before engines load the version that is to be evaluated
        self._num_skipped = self._num_skipped + 1 if result.was_skipped else 0
        self._num_vanishing = self._num_vanishing + 1 if result.is_vanishing else 0
        if version == self._num_vanishing == min(FIRST_STEPS, self._config.max_steps):
            self._say_gradient_vanishes(result)
        if self._num_skipped >= self._config.health.max_skipped_steps:
            if checkpointer is not None:
                await self.checkpoint(checkpointer)
                await checkpointer.finish()
            raise RuntimeError(
                f"{self._num_skipped} steps in a row had no finite gradient and were skipped; the weights of "
                f"before are in the checkpoint of step {version}"
            )
        if checkpointer is not None and checkpointer.is_due(version) and not self.slots.done:
            await self.checkpoint(checkpointer)

    def _say_gradient_vanishes(self, result: StepResult) -> None:
        """The weights hardly move from the start: whoever waits for the end of the run waits for nothing."""
        objective = self._config.objective
        reason = (
            f"the gradient norm of the first steps is too small, {result.metrics['grad_norm']:.2g} by now, for "
            f"AdamW (learner.eps {self._config.learner.eps:g}) to move the weights: "
        )
        if "alpha" in objective.parameters and objective.name.startswith("power"):
            reason += f"with objective.alpha {objective.parameters['alpha']:g} rewards of unlikely tokens vanish"
        else:
            reason += "see reward/* and masked/* in the metrics"
        logger.warning("%s", reason)
        self._events.add("gradient_vanishes", step=self.slots.version, reason=reason)

    async def _finish(self) -> None:
        """Save what was trained; a finished run is evaluated and exported too."""
        if self._checkpointer is not None:
            await self.checkpoint(self._checkpointer)
            await self._checkpointer.finish()
        if self.slots.done:
            await self._evaluations.finish()
            await self._learner.export(str(self._folder.export.resolve()))
            if self._samples is not None:
                await self._weights.all_loaded()
                await self._samples.take("after", self.slots.version)
        if self._checkpointer is not None:
            self._checkpointer.check_saved(self.slots.version)

    async def checkpoint(self, checkpointer: Checkpointer) -> None:
        """Begin a checkpoint of the current version, unless there is one."""
        progress = Progress(self.slots.frontier(), self._incarnation, self._prompts.replacements)
        await checkpointer.begin(progress)

    # -- a lost learner --

    async def _fall_back(self, lost: LearnerLostError | None) -> None:
        """Restart the learner from the last checkpoint, and begin a new incarnation there."""
        while lost is not None:
            await self._evaluations.abandon("the learner was lost", above=self.slots.version)
            self._weights.invalidate()
            await self._recovery.prepare(lost, self.slots.version)
            try:
                progress = await self._recover(str(lost))
            except LearnerLostError as again:
                lost = again
            else:
                lost = None
                self._recovery.succeeded(progress.frontier.version)
                await self._evaluations.abandon("the learner fell back", above=progress.frontier.version)
                self._begin(progress)

    async def _recover(self, reason: str) -> Progress:
        """Restart the learner at its last checkpoint; returns where that stands."""
        assert self._restore is not None, "without `restore` a lost learner fails the run"
        await self._learner.restart(reason)
        if self._checkpointer is not None:
            await self._checkpointer.finish()  # what its ranks have not written has failed by now
        progress = await self._restore(reason, self._incarnation)
        if self._checkpointer is not None:
            self._checkpointer.fell_back_to(progress.saved_version)
        return progress

    # -- seen from outside --

    def on_step(self, show: Callable[[dict[str, Any]], None]) -> None:
        """Call `show(metrics row)` after every step."""
        self._show.append(show)

    def stop(self) -> None:
        """Finish the step in progress, checkpoint, and return from `run`: at once if no step has begun here."""
        has_work = self._has_begun or self.slots.done
        if not has_work and not self._is_stopping and self._running is not None:
            self._ends_at_once = True
            self._running.cancel()
        self._is_stopping = True
        self._signal.changed()

    def status(self) -> dict[str, Any]:
        """Where the run stands, as JSON values: slots, throughput, staleness, waits, advice."""
        return progress_status(self.slots, [*self._recent]) | {
            "balanced": self._balancer.last_reason,
            "evaluation": self._evaluations.status(),
            "queues": {
                "in_flight": self._rollouts.num_in_flight,
                "to_score": self._scoring.num_queued_of_role,
                "scored": self._scoring.num_scored,
                "capacity": self._scoring.capacity,
            },
        }

    # -- construction --

    def __init__(
        self,
        context: RunContext,
        *,
        learner: LearnerGroup,
        prompts: Prompts,
        sampling: Sampling | None,
        evaluation: Evaluation | None,
        progress: Progress,
        restore: Restore | None = None,
        token_bytes: int = SAMPLED.token_bytes,
        cluster: Cluster | None = None,
        checkpointer: Checkpointer | None = None,
        samples: Samples | None = None,
    ) -> None:
        """Connect the stages; the pools are started, and `progress` says where to begin.

        `restore` brings a restarted learner to the last checkpoint; without it a lost learner fails the run.
        Without a `checkpointer` nothing is saved.
        `token_bytes` is about the size of a token in a scored table; `cluster` is what the balance of the pools
        asks for capacity, by default the connected Ray as it is.
        """
        self.context = context
        self._config = config = context.config
        pools = context.pools
        self._folder = folder = context.folder
        self._events = events = context.events
        self._signal = signal = context.signal
        members = context.members
        self._learner = learner
        self._restore = restore
        self._prompts = prompts
        self._sampling = sampling
        self._samples = samples
        self._token_bytes = token_bytes
        self._checkpointer = checkpointer
        self._is_stopping = self._has_begun = self._ends_at_once = False
        self._running: asyncio.Task[Any] | None = None
        self._show: list[Callable[[dict[str, Any]], None]] = []
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._weights = WeightStore(
            pools["rollout"], config=config.cluster, signal=signal, members=members, events=events
        )
        self.scaling = Scaling(config, pools=pools, signal=signal, events=events)
        self._supervisor = Supervisor(config, pools=pools, scaling=self.scaling, members=members, events=events)
        self._balancer = Balancer(
            config,
            pools=pools,
            scaling=self.scaling,
            cluster=cluster or RayCluster(may_grow=False),
            signal=signal,
            events=events,
        )
        self._recovery = Recovery(config.health, events)
        self._evaluations = Evaluations(context, evaluation, weights=self._weights)
        self.on_step(self._balancer.note)
        self._waste = WastedTokens(folder.metric_rows())
        self._begin(progress)

    def _begin(self, progress: Progress) -> None:
        """Lay out an incarnation of the run from `progress` on."""
        config = self._config
        self._incarnation = progress.incarnation
        self._num_skipped = self._num_vanishing = 0
        self._waste.begin(progress.frontier.version)
        self._prompts.replacements.update(progress.replacements)
        self.slots = Slots(
            batch_size=config.batch_size,
            max_steps=config.max_steps,
            max_staleness=config.max_staleness,
            batches_ahead=config.num_batches_ahead,
            frontier=progress.frontier,
        )
        self._prompts.num_slots = self.slots.num_slots
        self._rollouts = RolloutStage(
            self.context,
            slots=self.slots,
            prompts=self._prompts,
            sampling=self._sampling,
            deliver=self._deliver,
            waste=self._waste,
        )
        self._scoring = ScoreStage(
            self.context,
            slots=self.slots,
            accept=self._rollouts.accept,
            lose=self._rollouts.lose,
            token_bytes=self._token_bytes,
        )
        self._flow = Flow(
            self.context, slots=self.slots, rollouts=self._rollouts, scoring=self._scoring, weights=self._weights
        )

    async def _deliver(self, rollout: Rollout) -> None:
        await self._scoring.put(rollout)
