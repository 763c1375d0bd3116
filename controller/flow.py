"""How the queues and pools of a run do: what a metrics row says of waits, back-pressure and use.

slots --wait/rollout_s--> workers --wait/teacher_s--> teachers (--wait/reference_s--> reference)
  ^                                                                  '--wait/learner_s--> learner

`records/metrics.py` says what each key means. Slots that held-up streams have not read do not count as used; the
time in which the start window holds rollout workers up is the mean time of a worker without any work.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping

from cluster.pool import Pool
from cluster.waiting import now
from controller.lanes import Lane
from controller.meters import Clock
from controller.rollouts import RolloutStage
from controller.scoring import REFERENCE, ScoreStage
from controller.slots import Slots
from settings.run import RunConfig

LOOK_EVERY_S = 0.1
"""The use of workers is looked at so often; waits, back-pressure of queues and `queued` of scorers are exact."""


class Flow:
    """Watches the stages, and says of each step how they did."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pool: Pool,
        rollouts: RolloutStage,
        scoring: ScoreStage,
        slots: Slots,
        clock: Clock = now,
    ) -> None:
        """`pool` is that of the rollout workers."""
        self._pool = pool
        self._rollouts = rollouts
        self._scoring = scoring
        self._slots = slots
        self._clock = clock
        self._num_samples = config.num_samples_per_prompt
        self._sequences = sequences_of_worker(config)
        self._sums: defaultdict[str, float] = defaultdict(float)  # over the looks since the last row
        self._since = clock()

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
        sums, workers = self._sums, self._pool.serving
        has_waiting = bool(self._slots.startable(1))
        streams = max(1, sum(worker.num_uses for worker in workers))
        held_up = sum(lane.held_up.num_lasting for lane in self._teachers().values())
        moving = 1 - min(1.0, held_up / streams)
        sums["looks"] += 1
        sums["queued/rollout"] += has_waiting
        for worker in workers:
            sums["workers/rollout"] += 1
            sums["busy/rollout"] += worker.num_slots > 0
            sums["used/rollout"] += moving * min(1.0, worker.num_slots * self._num_samples / self._sequences)
            sums["idle/rollout"] += worker.num_slots == 0 and not has_waiting
        for role, lane in self._scoring.lanes.items():
            for worker in lane.pool.healthy:
                sums[f"workers/{role}"] += 1
                sums[f"busy/{role}"] += worker.num_calls > 0
                sums[f"used/{role}"] += min(1.0, worker.num_calls / lane.max_calls)

    def take(self) -> dict[str, float]:
        """The entries of a metrics row, of the time since the last one."""
        self.look()
        until = self._clock()
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
