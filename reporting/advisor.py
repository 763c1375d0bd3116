"""Which stage limits a run, what to do about it, and how its pools do: from the metrics rows of recent steps.

The learner's time is training and publishing, waiting for rollouts, waiting for scores, and pauses. The pipeline
counts a wait as one for scores while any rollout is with a teacher. Where generating one batch overlaps training
another, teachers are busy most of the time even if they keep up: they limit the run only where rollouts queue.
A wait for rollouts has one of two causes: the rollout workers are full, or the start window is used up before they
are (`controller/flow.py` has what the rows say of that).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.pool_sizes import FULL

RECENT_STEPS = 20
"""Steps that advice on a run in progress is taken from."""

MIN_QUEUE = 1.0
"""Mean rollouts in the queues of the scorers from which on they do not keep up, in rows without `queued/`."""

LEAST_HELD_UP = 0.05
"""Back-pressure is named from this share of the time on."""

Means = dict[str, dict[str, float]]
"""By kind (`wait`, `backpressure`, `busy`) and pool."""


@dataclass(frozen=True)
class Advice:
    """What limits a run."""

    limit: str
    """Role of the pool (`rollout`, `teacher`, `teacher-NAME`, `reference`), `window`, `learner`, or `pauses`."""
    share: float
    """Its share of the learner's time, in [0, 1]."""
    text: str
    """What it is and what to do, in one line."""

    @property
    def short(self) -> str:
        """As on a progress line: `teacher-bound 62 %`."""
        return f"{self.limit}-bound {percent(self.share)}"


TIMED = tuple(f"time/{name}_s" for name in ("step", "rollout_wait", "score_wait", "train", "publish"))
"""Without one of these a row tells nothing of what limits a run."""


def advise(rows: Sequence[Mapping[str, Any]]) -> Advice | None:
    """Advice from metrics rows, oldest first; None without a row that has times."""
    timed = [row for row in rows if all(key in row for key in TIMED)]
    total_s = sum(row["time/step_s"] for row in timed)
    if total_s <= 0:
        return None

    def share(*keys: str) -> float:
        return sum(row[key] for row in timed for key in keys) / total_s

    rollout, score = share("time/rollout_wait_s"), share("time/score_wait_s")
    learner = share("time/train_s", "time/publish_s")
    if _scorers_keep_up(timed):
        rollout, score = rollout + score, 0.0
    shares = {"score": score, "rollout": rollout, "learner": learner, "pauses": 1 - score - rollout - learner}
    limit = max(shares, key=lambda stage: shares[stage])
    match limit:
        case "score":
            return _scorer_bound(timed, score)
        case "rollout":
            return _rollout_bound(timed, rollout)
        case "learner":
            text = "of its time is training and publishing; more rollout workers or teachers do not help, more "
            text += "ranks (learner.num_workers, with --resume) do"
        case _:
            text = "of the learner's time goes to evaluations and checkpoints; make them rarer "
            text += "(evaluation.every_steps, checkpoint.every_steps)"
    return Advice(limit, shares[limit], f"{limit}-bound: {percent(shares[limit])} {text}")


def _scorers_keep_up(rows: Sequence[Mapping[str, Any]]) -> bool:
    """True if generating overlaps training and rollouts hardly wait for a scorer."""
    if not any(row.get("staleness/max", 0) > 0 for row in rows):
        return False
    shares = [_mean(rows, f"queued/{role}") for role in _scorers(rows) if f"queued/{role}" in rows[-1]]
    if shares:
        return max(shares) < FULL
    return sum(row.get("queue/rollouts", 0) for row in rows) / len(rows) < MIN_QUEUE


def _scorer_bound(rows: Sequence[Mapping[str, Any]], share: float) -> Advice:
    role = _fullest_scorer(rows)
    field = role.replace("teacher-", "teachers.", 1)
    held_up = "teachers" if role == "reference" else "rollout workers"
    text = (
        f"{role}-bound: {percent(share)} of the learner's time is waiting for scores; add one {role} worker or "
        f"raise {field}.max_batch_tokens{_details(rows, role, f'its full queue held the {held_up} up')}"
    )
    return Advice(role, share, text)


def _rollout_bound(rows: Sequence[Mapping[str, Any]], share: float) -> Advice:
    """Rollout workers that are full limit the run; where they are not, the start window does."""
    waiting = f"{percent(share)} of the learner's time is waiting for rollouts"
    used = _mean(rows, "used/rollout") if "used/rollout" in rows[-1] else 1.0
    if max(used, _mean(rows, "queued/rollout") if "queued/rollout" in rows[-1] else 1.0) >= FULL:
        details = _details(rows, "rollout", "")
        return Advice("rollout", share, f"rollout-bound: {waiting}; add rollout workers{details}")
    text = (
        f"window-bound: {waiting}, but no slot may start and the rollout workers are only {percent(used)} full; "
        f"raise batches_ahead (at most max_staleness)"
    )
    return Advice("window", share, text)


def _details(rows: Sequence[Mapping[str, Any]], role: str, held_up: str) -> str:
    """How long a slot waits for the pool, how busy it is, and what its full queue held up."""
    if f"wait/{role}_s" not in rows[-1]:
        return ""
    wait_s, busy = _mean(rows, f"wait/{role}_s"), _mean(rows, f"busy/{role}")
    parts = [f"a slot waits {wait_s:.3g} s for it", f"it is busy {percent(busy)} of the time"]
    total_s = sum(row["time/step_s"] for row in rows)
    share = sum(row.get(f"backpressure/{role}_s", 0.0) for row in rows) / total_s
    parts += [f"{held_up} {percent(min(1.0, share))} of the time"] if share >= LEAST_HELD_UP else []
    return f" ({', '.join(parts)})"


def percent(share: float) -> str:
    """A share for people: `62 %`."""
    return f"{share:.0%}".replace("%", " %")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean over the time of the rows."""
    total_s = sum(row["time/step_s"] for row in rows)
    return sum(row.get(key, 0.0) * row["time/step_s"] for row in rows) / total_s


def _scorers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key.removeprefix("queue/") for key in rows[-1] if key.startswith(("queue/teacher", "queue/reference"))]


def _fullest_scorer(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scorer that rollouts wait for most over these steps; the main teacher if they wait for none."""
    if _mean(rows, "queued/reference") >= FULL:
        return "reference"  # teachers pause while its queue is full, so that theirs fill too
    kind = "queued" if "queued/teacher" in rows[-1] else "queue"
    lengths = {role: sum(row.get(f"{kind}/{role}", 0) for row in rows) for role in ["teacher", *_scorers(rows)]}
    return max(lengths, key=lambda role: lengths[role])


def flow_means(rows: Sequence[Mapping[str, Any]]) -> Means:
    """Means over metrics rows, weighted with their time: {"wait": {"teacher": 0.5}, "backpressure": {...}, ...}.

    The kinds are `wait` (seconds), `backpressure` and `busy` (shares of the time); empty without rows that tell.
    """
    told = [row for row in rows if "wait/learner_s" in row and row.get("time/step_s", 0) > 0]
    total_s = sum(row["time/step_s"] for row in told)
    means: Means = {"wait": {}, "backpressure": {}, "busy": {}} if told else {}
    for key in told[-1] if told else ():
        kind, _, name = key.partition("/")
        if kind in means:
            weights = [1.0 if kind == "backpressure" else row["time/step_s"] for row in told]
            total = sum(row.get(key, 0.0) * weight for row, weight in zip(told, weights, strict=True))
            means[kind][name.removesuffix("_s")] = round(total / total_s, 4)
    return means


def flow_line(means: Means) -> str:
    """Means in one line: `waits: rollout 0.10 s, teacher 2.00 s (held up 30 %); busy: rollout 95 %`."""
    waits = [
        f"{name} {seconds:.2f} s" + _held_up(means["backpressure"].get(name, 0.0))
        for name, seconds in means["wait"].items()
    ]
    busy = [f"{name} {percent(share)}" for name, share in means["busy"].items()]
    return f"waits for: {', '.join(waits)}; busy: {', '.join(busy)}"


def _held_up(share: float) -> str:
    return f" (held up {percent(share)})" if share >= 0.005 else ""
