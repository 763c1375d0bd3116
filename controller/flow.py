"""How the queues and pools of a run do: what a metrics row says of waits, back-pressure and use.

slots --wait/rollout_s--> workers --wait/teacher_s--> teachers (--wait/reference_s--> reference)
  ^                                                                  '--wait/learner_s--> learner

`records/metrics.py` says what each key means. Slots that held-up streams have not read do not count as used; the
time in which the start window holds rollout workers up is the mean time of a worker without any work.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.waiting import now
from controller.context import RunContext
from controller.lanes import Lane, Rollout
from controller.rollouts import RolloutStage
from controller.scoring import REFERENCE, ScoreStage
from controller.slots import Slots
from controller.weight_store import WeightStore
from settings.run import RunConfig
from transport.notes import StepResult

LOOK_EVERY_S = 0.1
"""The use of workers is looked at so often; waits, back-pressure of queues and `queued` of scorers are exact."""


@dataclass
class StepTimes:
    """Where the seconds of one step went."""

    rollout_wait_s: float = 0.0
    """Without a batch, while nothing was being scored."""
    score_wait_s: float = 0.0
    """Without a batch, while rollouts were being scored."""
    train_s: float = 0.0
    publish_s: float = 0.0
    step_s: float = 0.0


class Flow:
    """Watches the stages, and says of each step how they did."""

    def __init__(
        self,
        context: RunContext,
        *,
        slots: Slots,
        rollouts: RolloutStage,
        scoring: ScoreStage,
        weights: WeightStore,
    ) -> None:
        self._config, self._pools = context.config, context.pools
        self._slots = slots
        self._rollouts = rollouts
        self._scoring = scoring
        self._weights = weights
        self._sequences = sequences_of_worker(context.config)
        self._sums: defaultdict[str, float] = defaultdict(float)  # over the looks since the last row
        self._since = now()

    async def run(self) -> None:
        """Look at the workers as long as the pipeline runs."""
        self.open_slots()
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def open_slots(self) -> None:
        """Note that the start window has moved: its waiting slots begin to wait for a worker."""
        self._rollouts.waits.enter(*self._slots.startable())

    def look(self) -> None:
        """Take one sample of what every worker holds."""
        sums, workers = self._sums, self._pools["rollout"].serving
        has_waiting = bool(self._slots.startable(1))
        streams = max(1, sum(worker.num_uses for worker in workers))
        num_samples = self._config.num_samples_per_prompt
        held_up = sum(lane.held_up.num_lasting for lane in self._teachers().values())
        moving = 1 - min(1.0, held_up / streams)
        sums["looks"] += 1
        sums["queued/rollout"] += has_waiting
        for worker in workers:
            sums["workers/rollout"] += 1
            sums["busy/rollout"] += worker.num_slots > 0
            sums["used/rollout"] += moving * min(1.0, worker.num_slots * num_samples / self._sequences)
            sums["idle/rollout"] += worker.num_slots == 0 and not has_waiting
        for role, lane in self._scoring.lanes.items():
            for worker in lane.pool.healthy:
                sums[f"workers/{role}"] += 1
                sums[f"busy/{role}"] += worker.num_calls > 0
                sums[f"used/{role}"] += min(1.0, worker.num_calls / lane.max_calls)

    def step_row(self, result: StepResult, scored: Sequence[Rollout], times: StepTimes) -> dict[str, Any]:
        """The metrics row of the step that made the current version; meters start anew."""
        step_s = max(times.step_s, 1e-9)
        work = {"rollout": self._rollouts.work.take(), **self._scoring.take_work()}
        return {
            "step": self._slots.version,
            "weight_version": self._slots.version,
            "time_s": round(time.time(), 3),
            **result.metrics,
            "skipped": int(result.was_skipped),
            "time/rollout_wait_s": times.rollout_wait_s,
            "time/score_wait_s": times.score_wait_s,
            "time/train_s": times.train_s,
            "time/publish_s": times.publish_s,
            **self._weights.metrics(),
            "time/step_s": times.step_s,
            "queue/rollouts": self._scoring.num_queued,
            **{f"queue/{role}": num for role, num in self._scoring.num_queued_of_role.items()},
            "queue/scored": self._scoring.num_scored,
            "queue/in_flight": self._rollouts.num_in_flight,
            **{f"workers/{role}": num for role, num in self._num_workers().items()},
            "throughput/learner": sum(slot.note.num_response_tokens for slot in scored) / step_s,
            "throughput/rollout": self._rollouts.take_throughput(),
            **{f"throughput/{role}": rate for role, rate in self._scoring.take_throughputs().items()},
            **self._take(),
            "busy/learner": (times.train_s + times.publish_s) / step_s,
            "work/learner_tokens": sum(slot.note.num_tokens for slot in scored),
            **{f"work/{role}_{name}": num for role, done in work.items() for name, num in done.items()},
            "prompts_given_up": self._rollouts.num_given_up,
        }

    def _num_workers(self) -> dict[str, int]:
        """Healthy workers by role; those of all teachers under `teacher`."""
        healthy = {role: len(self._pools[role].healthy) for role in ("rollout", *self._config.scorers)}
        return healthy | {"teacher": sum(healthy[role] for role in self._config.teacher_of_role)}

    def _take(self) -> dict[str, float]:
        """What the head of this file describes, of the time since the last row."""
        self.look()
        until = now()
        seconds = max(until - self._since, 1e-9)
        sums, self._sums, self._since = self._sums, defaultdict(float), until
        row = {
            "wait/rollout_s": self._rollouts.waits.take(),
            "wait/learner_s": self._scoring.scored_waits.take(),
            "backpressure/learner_s": seconds * sums["idle/rollout"] / max(1, sums["workers/rollout"]),
            "queued/rollout": sums["queued/rollout"] / sums["looks"],
            "slots/rollout": self._rollouts.finished.take(),
        }
        for role, lane in self._scoring.lanes.items():
            row |= {
                f"wait/{role}_s": lane.queue.waits.take(),
                f"backpressure/{role}_s": lane.held_up.take(),
                f"queued/{role}": min(1.0, lane.queue.queued.take() / seconds),
                f"slots/{role}": lane.slots.take(),
            }
        for role in ("rollout", *self._scoring.lanes):
            looks = max(1, sums[f"workers/{role}"])
            row |= {f"{kind}/{role}": sums[f"{kind}/{role}"] / looks for kind in ("busy", "used")}
        return row

    def _teachers(self) -> Mapping[str, Lane]:
        return {role: lane for role, lane in self._scoring.lanes.items() if role != REFERENCE}


def sequences_of_worker(config: RunConfig) -> int:
    """Sequences that one rollout worker generates together when it is full."""
    in_flight = config.rollout.max_in_flight * config.num_samples_per_prompt
    return min(in_flight, config.rollout.engine.max_num_seqs)
