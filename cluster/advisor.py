"""Which stage limits a run, and what to do about it: pure, from the metrics rows of recent steps.

The learner's time is training and publishing, waiting for rollouts, waiting for scores, and pauses. The pipeline
counts a wait as one for scores while any rollout is with a teacher. Where generating one batch overlaps training
another, teachers are busy most of the time even if they keep up: they limit the run only where rollouts
queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECENT_STEPS = 20
"""Steps that advice on a run that goes on is taken from."""

MIN_QUEUE = 1.0
"""Mean rollouts in the queues of the scorers from which on they do not keep up."""


@dataclass(frozen=True)
class Advice:
    """What limits a run."""

    limit: str
    """Role of the pool (`rollout`, `teacher`, `teacher-NAME`, `reference`), `learner`, or `pauses`."""
    share: float
    """Its share of the learner's time, in [0, 1]."""
    text: str
    """What it is and what to do, in one line."""

    @property
    def short(self) -> str:
        """As on a progress line: `teacher-bound 62 %`."""
        return f"{self.limit}-bound {self.share:.0%}".replace("%", " %")


def advise(rows: Sequence[Mapping[str, Any]]) -> Advice | None:
    """Advice from metrics rows, oldest first; None without a row that has times."""
    timed = [row for row in rows if "time/step_s" in row]
    total_s = sum(row["time/step_s"] for row in timed)
    if total_s <= 0:
        return None

    def share(*keys: str) -> float:
        return sum(row[key] for row in timed for key in keys) / total_s

    rollout, score = share("time/rollout_wait_s"), share("time/score_wait_s")
    learner = share("time/train_s", "time/publish_s")
    queued = sum(row["queue/rollouts"] for row in timed) / len(timed)
    overlaps = any(row["staleness/max"] > 0 for row in timed)
    if overlaps and queued < MIN_QUEUE:
        rollout, score = rollout + score, 0.0
    shares = {"score": score, "rollout": rollout, "learner": learner, "pauses": 1 - score - rollout - learner}
    limit = max(shares, key=lambda stage: shares[stage])
    if limit == "score":
        return _scorer_bound(_fullest_scorer(timed), score)
    percent = f"{shares[limit]:.0%}".replace("%", " %")
    text = {
        "rollout": f"rollout-bound: {percent} of the learner's time is waiting for rollouts; add rollout workers",
        "learner": f"learner-bound: {percent} of its time is training and publishing; more rollout workers or "
        "teachers do not help, more ranks (learner.num_workers, with --resume) do",
        "pauses": f"pauses-bound: {percent} of the learner's time goes to evaluations and checkpoints; make them "
        "rarer (evaluation.every_steps, checkpoint.every_steps)",
    }
    return Advice(limit, shares[limit], text[limit])


def _scorer_bound(role: str, share: float) -> Advice:
    field = role.replace("teacher-", "teachers.", 1)
    percent = f"{share:.0%}".replace("%", " %")
    text = (
        f"{role}-bound: {percent} of the learner's time is waiting for scores; add one {role} worker or raise "
        f"{field}.max_batch_tokens"
    )
    return Advice(role, share, text)


def _fullest_scorer(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scorer with the longest queue over these steps; the main teacher if all are empty."""
    roles = [
        key.removeprefix("queue/") for key in rows[-1] if key.startswith(("queue/teacher", "queue/reference"))
    ]
    lengths = {role: sum(row.get(f"queue/{role}", 0) for row in rows) for role in ["teacher", *roles]}
    return max(lengths, key=lambda role: lengths[role])
