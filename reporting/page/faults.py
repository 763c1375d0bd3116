"""What went wrong in a run and what was done about it: from `events.jsonl`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from reporting.page.run_data import Row, RunData, number

MAX_SHOWN = 200
"""Faults in the table; of more, the first and the last."""

WORDS: Mapping[str, str] = {
    "worker_died": "worker died",
    "worker_restarted": "worker restarted",
    "worker_given_up": "worker given up",
    "worker_suspect": "worker silent",
    "worker_heard": "worker heard again",
    "rollout_failed": "rollouts failed, started again",
    "scoring_failed": "scoring failed, repeated",
    "tables_lost": "scored tables lost",
    "weights_failed": "weights not loaded",
    "prompt_given_up": "prompt given up",
    "learner_lost": "learner lost",
    "learner_restarted": "learner restarted, fell back",
    "resumed": "run continued",
    "checkpoint_failed": "checkpoint failed",
    "checkpoint_damaged": "checkpoint damaged",
    "ledger_damaged": "ledger damaged",
    "ledger_restored": "ledger restored",
    "rows_written_late": "disk was full",
    "controller_lost": "controller's mailbox lost",
    "orphan_ended": "left-over process ended",
    "samples_failed": "samples not taken",
}

NOT_DETAILS = ("time", "event", "worker", "reason", "error", "node", "pid")


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    after_s: float
    what: str
    who: str
    details: str


@dataclass(frozen=True)
class Faults:
    """All faults of a run: how often each kind, and the table."""

    counts: Mapping[str, int]
    table: list[Fault]
    num_left_out: int

    @property
    def text(self) -> str:
        """In one line."""
        return ", ".join(f"{what} {num}x" for what, num in self.counts.items()) or "none"


def faults_of(run: RunData) -> Faults:
    """The faults, in the order in which they came."""
    events = [event for event in run.events if _is_fault(event)]
    counts = Counter(_words(event) for event in events)
    shown = events
    if len(events) > MAX_SHOWN:
        shown = events[: MAX_SHOWN // 2] + events[-MAX_SHOWN // 2 :]
    table = [_fault(event, run.start_s) for event in shown]
    return Faults(dict(counts.most_common()), table, len(events) - len(shown))


def _is_fault(event: Row) -> bool:
    kind = event["event"]
    return kind in WORDS or any(word in kind for word in ("failed", "lost", "damaged"))


def _words(event: Row) -> str:
    return WORDS.get(event["event"], event["event"].replace("_", " "))


def _fault(event: Row, start_s: float) -> Fault:
    time_s = number(event, "time")
    named = [f"{key} {value}" for key, value in event.items() if key not in NOT_DETAILS and value is not None]
    reasons = [str(event[key]) for key in ("reason", "error") if event.get(key)]
    return Fault(
        after_s=0.0 if time_s is None else time_s - start_s,
        what=_words(event),
        who=str(event.get("worker") or event.get("prompt_id") or ""),
        details=_short("; ".join([*reasons, ", ".join(named)] if named else reasons)),
    )


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
