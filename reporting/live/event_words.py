"""Events of a run in words, which of them tell of the health of workers, and evaluations as scalars."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

KIND_OF_EVENT = {
    "worker_died": "deaths",
    "learner_lost": "deaths",
    "worker_restarted": "restarts",
    "learner_restarted": "restarts",
    "worker_suspect": "suspects",
    "worker_given_up": "given_up",
}
"""Events that are counted, and as what (`counted_as`)."""

WORDS = {
    "worker_started": "{worker} has started on {node} in {seconds} s",
    "worker_died": "{worker} has died",
    "worker_ended": "{worker} was ended",
    "worker_restarted": "{worker} is back after {seconds} s",
    "worker_readmitted": "{worker} is given work again",
    "worker_suspect": "{worker} does not answer",
    "worker_heard": "{worker} answers again",
    "worker_given_up": "{worker} was given up",
    "worker_retired": "{worker} has left",
    "scaled": "{role} is scaled from {from} to {to}",
    "balanced": "pools are balanced",
    "learner_lost": "the learner is lost at step {step}",
    "learner_restarted": "the learner is back at step {step}",
    "gradient_vanishes": "the gradient vanishes: the weights hardly move",
    "checkpoint": "step {step} is saved",
    "checkpoint_failed": "step {step} could not be saved",
    "checkpoint_damaged": "a checkpoint is damaged",
    "resumed": "resumed at step {step}",
    "evaluation_started": "evaluation of {model} at step {step} has begun",
    "evaluation_skipped": "the evaluation of step {step} is left out",
    "evaluation_abandoned": "the evaluation of {model} at step {step} was given up",
    "pushed": "the student is at {address}",
    "push_failed": "the student could not be uploaded to {repository}",
    "evaluated": "{model} at step {step} is evaluated",
    "prompt_given_up": "prompt {prompt_id} was given up",
    "rollout_failed": "a rollout call of {worker} failed",
    "scoring_failed": "a scoring call of {worker} failed",
    "tables_lost": "scored tables were lost",
    "weights_failed": "{worker} could not load weights",
    "rows_written_late": "rows of {file} were written late",
    "output_failed": "{stream} is switched off",
    "output_stalled": "{stream} leaves lines out",
    "dashboard_failed": "{dashboard} is switched off",
    "run_failed": "the run has failed",
    "controller_lost": "status, scale and stop do not reach the run from other machines",
    "controller_back": "status, scale and stop reach the run again",
}

ROUTINE = frozenset({"weights_published", "weights_loaded", "weights_sent", "worker_ready", "weights_group"})
"""Events of every step: no news."""

MAX_REASON = 160

NO_SCALARS = {"step", "n", "k", "weight_version", "seed"}


class _Known(dict[str, Any]):
    """Values of an event; what it does not say reads `?`."""

    def __missing__(self, key: str) -> str:
        return "?"


def in_words(event: Mapping[str, Any]) -> str:
    """One event in words, with its reason.

    >>> in_words({"event": "worker_died", "worker": "rollout-1", "reason": "ping: ActorDiedError"})
    'rollout-1 has died: ping: ActorDiedError'
    """
    name = str(event["event"])
    text = WORDS.get(name, name.replace("_", " ")).format_map(_Known(event))
    reason = " ".join(str(event.get("reason") or "").split())
    if len(reason) > MAX_REASON:
        reason = f"{reason[:MAX_REASON]}..."
    return f"{text}: {reason}" if reason else text


def counted_as(event: Mapping[str, Any]) -> str | None:
    """What an event of health counts as; None for others. A learner dies as a whole, and so once."""
    name = str(event["event"])
    is_rank = name == "worker_died" and role_of_event(event) == "learner"
    return None if is_rank else KIND_OF_EVENT.get(name)


def role_of_event(event: Mapping[str, Any]) -> str:
    """The role that an event of a worker is about: `learner` if it names no worker."""
    return str(event.get("worker", "learner-0")).rpartition("-")[0]


def health_of(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Counted events as JSON values: {"deaths": {"rollout": 1}, ...}."""
    health: dict[str, dict[str, int]] = {kind: {} for kind in dict.fromkeys(KIND_OF_EVENT.values())}
    for (kind, role), number in sorted(counts.items()):
        health[kind][role] = number
    return health


def student_or_role(model: str) -> str:
    """`student` for the student at any time (`student_before`, `student_after`), else the role of a teacher."""
    return "student" if model.startswith("student") else model


def evaluation_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a row of `eval.jsonl`, as dashboards name it: `k` and the role of a teacher are in the name.

    >>> evaluation_scalars({"model": "student_after", "benchmark": "gsm8k", "step": 9, "k": 8, "avg_at_k": 0.5})
    {'eval/gsm8k/avg_at_8': 0.5}
    """
    who = student_or_role(str(row["model"]))
    prefix = f"eval/{row['benchmark']}" if who == "student" else f"eval/{row['benchmark']}/{who}"
    at_k = f"_at_{row['k']}"
    return {
        f"{prefix}/{key.replace('_at_k', at_k)}": float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in NO_SCALARS
    }
