"""The controller: one asyncio loop that moves references from stage to stage and never reads a token.

    slots --> RolloutStage --(note, table ref)--> ScoreStage --(note, table ref)--> batch --> LearnerGroup
      ^            ^                                                                              |
      |            '------ engines load v+1 <--- WeightStore <--- buckets, manifest --------------'
      '------------------- version v+1 opens the next slots <----------------------------------- '

Who waits for whom, and what unblocks it:
    rollout engines   the start window is used up             a batch is trained (version + 1)
    rollout streams   the score queue is full                 a teacher takes rollouts
    teachers          no rollouts                             an engine finishes a slot
    learner           no batch, or a deadline would be lost   a slot is scored
    slow engines      nothing: they skip versions             -
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.evaluation import Evaluation, EvaluationResult
from cluster.events import Events
from cluster.learner_group import LearnerGroup, StepResult
from cluster.pool import Pool
from cluster.rollouts import RolloutStage
from cluster.run_folder import RunFolder
from cluster.scoring import ScoredSlot, ScoreStage
from cluster.slots import Slots
from cluster.waiting import Signal
from cluster.weight_store import WeightStore

logger = logging.getLogger(__name__)


@dataclass
class Waits:
    """Seconds the learner waited for its last batch, by the stage it waited for."""

    rollout_s: float = 0.0
    score_s: float = 0.0


@dataclass
class Pipeline:
    """All stages of a run. `run()` returns when `max_steps` are trained or `stop()` was called."""

    config: RunConfig
    slots: Slots
    rollout_pool: Pool
    teacher_pool: Pool
    rollouts: RolloutStage
    scoring: ScoreStage
    learner: LearnerGroup
    weights: WeightStore
    evaluation: Evaluation | None
    folder: RunFolder
    events: Events
    signal: Signal
    on_step: Callable[[dict[str, Any]], None]
    on_evaluation: Callable[[str, EvaluationResult], None]
    state: Callable[[], dict[str, Any]]  # what a checkpoint stores besides the frontier
    incarnation: int = 0
    is_stopping: bool = False

    async def run(self) -> None:
        """Run all stages side by side until training ends; an error in any of them ends the run."""
        async with asyncio.TaskGroup() as stages:
            running = [stages.create_task(stage.run()) for stage in (self.rollouts, self.scoring, self.weights)]
            await self._train()
            for stage in running:
                stage.cancel()

    def stop(self) -> None:
        """Finish the step in progress, checkpoint, and return from `run`."""
        self.is_stopping = True
        self.signal.changed()

    async def _train(self) -> None:
        await self._publish()
        if self.slots.version == 0:
            await self._evaluate("student_before")
        started = time.monotonic()
        while not self.slots.done and not self.is_stopping:
            waits = Waits()
            batch = await self._next_batch(waits)
            if batch is None:
                break
            step = self.slots.version
            scored = self.scoring.take(batch)
            train_started = time.monotonic()
            result = await self.learner.train(step, scored)
            train_s = time.monotonic() - train_started
            self.slots.train(batch)
            publish_s = await self._publish()
            self._record(
                result, scored, waits, train_s=train_s, publish_s=publish_s, step_s=time.monotonic() - started
            )
            started = time.monotonic()
            await self._after_step()
        await self._finish()

    async def _next_batch(self, waits: Waits) -> list[int] | None:
        """Wait for a batch that the deadlines allow; None if the run is to stop."""
        since = time.monotonic()
        was_scoring = self.scoring.is_busy

        def ready() -> tuple[list[int] | None] | None:
            nonlocal since, was_scoring
            now = time.monotonic()
            if was_scoring:
                waits.score_s += now - since
            else:
                waits.rollout_s += now - since
            since, was_scoring = now, self.scoring.is_busy
            if self.is_stopping:
                return (None,)
            batch = self.slots.next_batch()
            return None if batch is None else (batch,)

        (batch,) = await self.signal.until(
            ready,
            timeout_s=self.config.cluster.rollout_timeout_s,
            what=lambda: (
                f"a batch ({self.slots.num_finished} of {self.config.batch_size} slots scored, "
                f"{self.rollouts.num_in_flight} in flight, deadlines wait for {self.slots.blocking()[:8]})"
            ),
        )
        return batch

    async def _publish(self) -> float:
        """Publish the learner's weights as the current version; returns the seconds it took."""
        weights = await self.learner.publish(self.incarnation, self.slots.version)
        self.weights.put(weights)
        return weights.publish_s

    def _record(self, result: StepResult, scored: list[ScoredSlot], waits: Waits, **seconds: float) -> None:
        """Write metrics and ledger of the step that made the current version."""
        version = self.slots.version
        tokens = sum(slot.note.num_response_tokens for slot in scored)
        row: dict[str, Any] = {
            "step": version,
            "weight_version": version,
            "time_s": round(time.time(), 3),
            **result.metrics,
            "skipped": int(result.was_skipped),
            "time/rollout_wait_s": waits.rollout_s,
            "time/score_wait_s": waits.score_s,
            "time/train_s": seconds["train_s"],
            "time/publish_s": seconds["publish_s"],
            "time/load_s": self.weights.last_load_s,
            "time/step_s": seconds["step_s"],
            "queue/rollouts": self.scoring.num_queued,
            "queue/scored": self.scoring.num_scored,
            "queue/in_flight": self.rollouts.num_in_flight,
            "workers/rollout": len(self.rollout_pool.healthy),
            "workers/teacher": len(self.teacher_pool.healthy),
            "throughput/learner": tokens / max(seconds["step_s"], 1e-9),
            "throughput/rollout": self.rollouts.take_throughput(),
            "throughput/teacher": self.scoring.take_throughput(),
            "prompts_given_up": self.rollouts.num_given_up,
        }
        self.folder.add_step(row, [uid for slot in scored for uid in slot.note.uids])
        self.on_step(row)

    async def _after_step(self) -> None:
        """Checkpoint and evaluate where due."""
        version, checkpoint, evaluation = self.slots.version, self.config.checkpoint, self.config.evaluation
        if checkpoint.every_steps and version % checkpoint.every_steps == 0 and not self.slots.done:
            await self.checkpoint()
        if evaluation.every_steps and version % evaluation.every_steps == 0 and not self.slots.done:
            await self._evaluate("student")

    async def _finish(self) -> None:
        """Save what was trained; a finished run is evaluated and exported too."""
        await self.checkpoint()
        if self.slots.done:
            await self._evaluate("student_after")
            await self.learner.export(str(self.folder.export.resolve()))

    async def checkpoint(self) -> None:
        """Write a checkpoint of the current version, unless there is one."""
        path = self.folder.checkpoints / f"step_{self.slots.version}"
        if path.exists():
            return
        frontier = self.slots.frontier()
        state = self.state() | {
            "version": frontier.version,
            "lowest_untrained": frontier.lowest_untrained,
            "trained_above": list(frontier.trained_above),
            "incarnation": self.incarnation,
        }
        start = time.monotonic()
        await self.learner.save_checkpoint(str(Path(path).resolve()), state)
        self.events.add("checkpoint", path=str(path), seconds=round(time.monotonic() - start, 3))

    async def _evaluate(self, name: str) -> None:
        if self.evaluation is None:
            return
        await self.weights.all_loaded()
        start = time.monotonic()
        result = await self.evaluation.run(self.rollout_pool, self.config.cluster)
        self.folder.add_evaluation({"step": self.slots.version, "model": name, **result.row()})
        self.events.add(
            "evaluated", model=name, step=self.slots.version, seconds=round(time.monotonic() - start, 3)
        )
        self.on_evaluation(name, result)
