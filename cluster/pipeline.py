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
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.advisor import RECENT_STEPS
from cluster.autoscaling import Cluster, RayCluster
from cluster.balancer import Balancer
from cluster.clock import now
from cluster.config import RunConfig
from cluster.evaluation import Evaluation
from cluster.events import Events
from cluster.flow import Flow
from cluster.learner_group import LearnerGroup, StepResult
from cluster.ownership import OWNER
from cluster.pool import Pool
from cluster.resume import Progress
from cluster.rollouts import Prompts, Rollout, RolloutStage
from cluster.run_folder import RunFolder
from cluster.scaling import Scaling
from cluster.scoring import ScoredSlot, ScoreStage
from cluster.slots import Slots
from cluster.status import progress_status
from cluster.teacher_signal import SAMPLED
from cluster.waiting import Signal
from cluster.weight_store import WeightStore

logger = logging.getLogger(__name__)


@dataclass
class Waits:
    """Seconds the learner waited for its last batch, by the stage it waited for."""

    rollout_s: float = 0.0
    score_s: float = 0.0


class Pipeline:
    """All stages of a run. `run()` returns when `max_steps` are trained or after `stop()`."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pools: Mapping[str, Pool],
        learner: LearnerGroup,
        prompts: Prompts,
        sampling: Any,
        evaluation: Evaluation | None,
        folder: RunFolder,
        events: Events,
        progress: Progress,
        token_bytes: int = SAMPLED.token_bytes,
        cluster: Cluster | None = None,
    ) -> None:
        """Connect the stages; `pools` are started, and `progress` says where to begin.

        `token_bytes` is about the size of a token in a scored table; `cluster` is what the balance of the pools
        asks for room, by default the connected Ray as it is.
        """
        self._config = config
        self._pools, self._rollout_pool = pools, pools["rollout"]
        self._learner = learner
        self._prompts = prompts
        self._evaluation = evaluation
        self._folder = folder
        self._events = events
        self._incarnation = progress.incarnation
        self._is_stopping = False
        self._show: list[Callable[[dict[str, Any]], None]] = []
        self._signal = signal = Signal()
        members = Signal(of=signal)
        for pool in pools.values():
            pool.signal = members
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)
        prompts.replacements.update(progress.replacements)
        self.slots = Slots(
            batch_size=config.batch_size,
            max_steps=config.max_steps,
            max_staleness=config.max_staleness,
            batches_ahead=config.num_batches_ahead,
            frontier=progress.frontier,
        )
        shared: dict[str, Any] = {"slots": self.slots, "signal": signal, "events": events}
        self._rollouts = RolloutStage(
            config, pool=self._rollout_pool, prompts=prompts, sampling=sampling, deliver=self._deliver, **shared
        )
        outcome: dict[str, Any] = {"accept": self._rollouts.accept, "lose": self._rollouts.lose}
        self._scoring = ScoreStage(config, pools=pools, token_bytes=token_bytes, **outcome, **shared)
        self._flow = Flow(
            config, pool=self._rollout_pool, rollouts=self._rollouts, scoring=self._scoring, slots=self.slots
        )
        self._weights = WeightStore(
            self._rollout_pool, config=config.cluster, signal=signal, members=members, events=events
        )
        self.scaling = Scaling(config, pools=pools, weights=self._weights, signal=signal, events=events)
        room: dict[str, Any] = {"cluster": cluster or RayCluster(may_grow=False), "scaling": self.scaling}
        self._balancer = Balancer(config, pools=pools, signal=signal, events=events, **room)
        self.on_step(self._balancer.note)

    def on_step(self, show: Callable[[dict[str, Any]], None]) -> None:
        """Call `show(metrics row)` after every step."""
        self._show.append(show)

    async def run(self) -> None:
        """Run all stages side by side until training ends; an error in any of them ends the run."""
        async with asyncio.TaskGroup() as stages:
            every_stage = (self._rollouts, self._scoring, self._weights, self.scaling, self._flow, self._balancer)
            running = [stages.create_task(stage.run()) for stage in every_stage]
            await self._train()
            for stage in running:
                stage.cancel()

    async def _deliver(self, rollout: Rollout) -> None:
        await self._scoring.put(rollout)

    def stop(self) -> None:
        """Finish the step in progress, checkpoint, and return from `run`."""
        self._is_stopping = True
        self._signal.changed()

    def status(self) -> dict[str, Any]:
        """Where the run stands, as JSON values: slots, throughput, staleness, waits, advice."""
        return progress_status(self.slots, [*self._recent]) | {
            "balanced": self._balancer.last_reason,
            "queues": {
                "in_flight": self._rollouts.num_in_flight,
                "to_score": self._scoring.num_queued_of_role,
                "scored": self._scoring.num_scored,
            },
        }

    async def _train(self) -> None:
        await self._publish()
        if self.slots.version == 0:
            if self._config.evaluation.teacher:
                for role in self._config.teacher_of_role:
                    await self._evaluate(role)
            await self._evaluate("student_before")
        started = now()
        while not self.slots.done and not self._is_stopping:
            waits = Waits()
            batch = await self._next_batch(waits)
            if batch is None:
                break
            step = self.slots.version
            scored = self._scoring.take(batch)
            train_started = now()
            result = await self._learner.train(step, scored)
            train_s = now() - train_started
            self.slots.train(batch)
            self._flow.open_slots()
            publish_s = await self._publish()
            self._record(result, scored, waits, train_s=train_s, publish_s=publish_s, step_s=now() - started)
            started = now()
            await self._after_step()
        await self._finish()

    async def _next_batch(self, waits: Waits) -> list[int] | None:
        """Wait for a batch that the deadlines allow; None if the run is to stop."""
        since = now()
        was_scoring = self._scoring.is_busy

        def ready() -> tuple[list[int] | None] | None:
            nonlocal since, was_scoring
            until = now()
            if was_scoring:
                waits.score_s += until - since
            else:
                waits.rollout_s += until - since
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

    async def _publish(self) -> float:
        """Publish the learner's weights as the current version; returns the seconds it took."""
        weights = await self._learner.publish(self._incarnation, self.slots.version)
        self._weights.put(weights)
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
            **self._weights.metrics(),
            "time/step_s": seconds["step_s"],
            "queue/rollouts": self._scoring.num_queued,
            **{f"queue/{role}": num for role, num in self._scoring.num_queued_of_role.items()},
            "queue/scored": self._scoring.num_scored,
            "queue/in_flight": self._rollouts.num_in_flight,
            **{f"workers/{role}": num for role, num in self._num_workers().items()},
            "throughput/learner": tokens / max(seconds["step_s"], 1e-9),
            "throughput/rollout": self._rollouts.take_throughput(),
            **{f"throughput/{role}": rate for role, rate in self._scoring.take_throughputs().items()},
            **self._flow.take(),
            "busy/learner": (seconds["train_s"] + seconds["publish_s"]) / max(seconds["step_s"], 1e-9),
            "work/learner_tokens": sum(slot.note.num_tokens for slot in scored),
            **{f"work/{role}_{name}": num for role, work in self._take_work() for name, num in work.items()},
            "prompts_given_up": self._rollouts.num_given_up,
        }
        self._folder.add_step(row, [uid for slot in scored for uid in slot.note.uids])
        self._recent.append(row)
        for show in self._show:
            show(row)

    def _take_work(self) -> Iterable[tuple[str, dict[str, float]]]:
        return ({"rollout": self._rollouts.work.take()} | self._scoring.take_work()).items()

    def _num_workers(self) -> dict[str, int]:
        """Healthy workers by role; those of all teachers under `teacher`."""
        healthy = {role: len(self._pools[role].healthy) for role in ("rollout", *self._config.scorers)}
        return healthy | {"teacher": sum(healthy[role] for role in self._config.teacher_of_role)}

    async def _after_step(self) -> None:
        """Checkpoint and evaluate where due."""
        version, checkpoint, evaluation = self.slots.version, self._config.checkpoint, self._config.evaluation
        if checkpoint.every_steps and version % checkpoint.every_steps == 0 and not self.slots.done:
            await self.checkpoint()
        if evaluation.every_steps and version % evaluation.every_steps == 0 and not self.slots.done:
            await self._evaluate("student")

    async def _finish(self) -> None:
        """Save what was trained; a finished run is evaluated and exported too."""
        await self.checkpoint()
        if self.slots.done:
            await self._evaluate("student_after")
            await self._learner.export(str(self._folder.export.resolve()))

    async def checkpoint(self) -> None:
        """Write a checkpoint of the current version, unless there is one; only the folder's owner does."""
        self._folder.owner.check()
        path = self._folder.checkpoints / f"step_{self.slots.version}"
        if path.exists():
            return
        progress = Progress(self.slots.frontier(), self._incarnation, self._prompts.replacements)
        start = now()
        state = progress.to_json() | {OWNER: self._folder.owner.token}
        await self._learner.save_checkpoint(str(path.resolve()), state)
        self._events.add("checkpoint", path=str(path), seconds=round(now() - start, 3))

    async def _evaluate(self, name: str) -> None:
        """Evaluate the student at exactly the current version (or the teacher whose role `name` is)."""
        if self._evaluation is None:
            return
        await self._weights.all_loaded()
        pool = self._pools[name] if name in self._config.teacher_of_role else self._rollout_pool
        start = now()
        result = await self._evaluation.run(pool, self._config.cluster)
        version, seconds = self.slots.version, round(now() - start, 3)
        self._folder.add_evaluation({"step": version, "model": name, **result.row()})
        self._events.add("evaluated", model=name, step=version, avg_at_k=result.avg_at_k, seconds=seconds)
