"""What a run has told so far, as JSON values for `launch.py status` and the live view: health, evaluations, times.

It is fed by the run itself (`Dashboards`), and holds the newest of everything only.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from records.metrics import declared
from reporting.advisor import RECENT_STEPS
from reporting.live.event_words import ROUTINE, counted_as, health_of, in_words, role_of_event
from settings.run import RunConfig

RECENT_S = 600.0
"""Health counts events of so long; since the start there are totals too."""

MAX_RECENT = 1000

WORK = ("time/rollout_wait_s", "time/score_wait_s", "time/train_s", "time/publish_s")
"""What the learner does in a step but for pauses."""


class Monitor:
    """The newest rows, events and evaluations of one run; times in seconds since the epoch."""

    def __init__(
        self,
        config: RunConfig,
        *,
        evaluations: Iterable[Mapping[str, Any]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`evaluations` are those of a resumed run so far."""
        self._config = config
        self._clock = clock
        self._started = self._progressed = clock()
        self._saved = 0
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._events: deque[Mapping[str, Any]] = deque(maxlen=MAX_RECENT)  # those of health
        self._newest: Mapping[str, Any] | None = None
        self._totals: Counter[tuple[str, str]] = Counter()
        self._evaluating: dict[str, Mapping[str, Any]] = {}
        self._evaluation_s = 0.0
        self._evaluations: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._phase, self._phase_since = "", self._started
        for row in evaluations:
            self.evaluation(row)

    def step(self, row: Mapping[str, Any]) -> None:
        """Note a trained step."""
        if self._rows and row["step"] <= self._rows[-1]["step"]:  # the learner fell back
            self._rows.clear()
        self._rows.append(row)
        self._progressed = row["time_s"]

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Note a row of `eval.jsonl`."""
        model = "student" if str(row["model"]).startswith("student") else str(row["model"])
        self._evaluations[model, str(row["benchmark"])] = row

    def event(self, event: Mapping[str, Any]) -> None:
        """Note an event."""
        name = event["event"]
        if kind := counted_as(event):
            self._events.append(event)
            self._totals[kind, role_of_event(event)] += 1
        if name not in ROUTINE:
            self._newest = event
        if name == "evaluation_started":
            self._evaluating[str(event["model"])] = event
        if name in ("evaluated", "evaluation_abandoned"):
            self._evaluating.pop(str(event.get("model")), None)
        if name == "evaluated" and str(event["model"]).startswith("student"):
            self._evaluation_s = float(event.get("seconds", 0.0))
        if name in ("checkpoint", "resumed"):
            self._saved = event["step"]
        if name == "learner_restarted":
            self._rows.clear()
            self._progressed = self._clock()

    def status(self, pools: Mapping[str, Any], *, is_running: bool) -> dict[str, Any]:
        """JSON values beside those of pools and slots; `pools` is `controller.status.pools_status`'s."""
        until = self._clock()
        return {
            "max_steps": self._config.max_steps,
            "started": round(self._started, 3),
            "progressed": round(self._progressed, 3),
            "usual_step_s": self._usual_step_s(),
            "checkpoint": {"step": self._saved, "every_steps": self._config.checkpoint.every_steps},
            "elapsed_s": round(until - self._started, 1),
            "waiting": self._waiting(pools, until, is_running=is_running),
            "left_s": self._left_s(),
            "since_step_s": round(until - self._rows[-1]["time_s"], 1) if self._rows else None,
            "rates": self._rates(),
            "metrics": in_status(self._rows[-1]) if self._rows else {},
            "health": self._health(until),
            "evaluating": [
                {"model": name, "step": event.get("step"), "seconds": round(until - event["time"], 1)}
                for name, event in self._evaluating.items()
            ],
            "evaluations": [
                {"model": model, **{key: row.get(key) for key in ("benchmark", "step", "k", "avg_at_k")}}
                for (model, _), row in self._evaluations.items()
            ],
        }

    def _rates(self) -> dict[str, float]:
        """Tokens per second by role over the recent steps: of the last one alone, queues decide."""
        timed = [row for row in self._rows if row.get("time/step_s", 0) > 0]
        seconds = sum(row["time/step_s"] for row in timed)
        keys = [key for key in timed[-1] if key.startswith("throughput/")] if timed else []
        return {
            key.removeprefix("throughput/"): sum(row.get(key, 0.0) * row["time/step_s"] for row in timed) / seconds
            for key in keys
        }

    def _usual_step_s(self) -> float | None:
        seconds = [row["time/step_s"] for row in self._rows if "time/step_s" in row]
        return round(median(seconds), 3) if seconds else None

    def _left_s(self) -> float | None:
        config = self._config
        has_evaluation = bool(self._evaluations)
        left = time_left_s(
            self._rows,
            max_steps=config.max_steps,
            evaluate_every=config.evaluation.every_steps if has_evaluation else 0,
            evaluation_s=self._evaluation_s,
        )
        return None if left is None else round(left, 1)

    def _health(self, until: float) -> dict[str, Any]:
        recent = [event for event in self._events if until - event["time"] <= RECENT_S]
        counts = Counter((counted_as(event) or "", role_of_event(event)) for event in recent)
        newest = self._newest
        return {
            "recent_s": RECENT_S,
            "recent": health_of(counts),
            "total": health_of(self._totals),
            "newest": None if newest is None else in_words(newest),
            "newest_age_s": None if newest is None else round(until - newest["time"], 1),
        }

    def _waiting(self, pools: Mapping[str, Any], until: float, *, is_running: bool) -> dict[str, Any] | None:
        """What the run waits for before its first step, and since when; None after it."""
        if self._rows:
            return None
        phase, text = waited_for(pools, is_running=is_running, evaluating=[*self._evaluating])
        if phase != self._phase:
            self._phase, self._phase_since = phase, until
        return {"phase": phase, "text": text, "seconds": round(until - self._phase_since, 1)}


def in_status(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row that the status holds as they are."""
    found = {key: declared(key) for key in row}
    return {key: row[key] for key, metric in found.items() if metric is not None and metric.status == "metrics"}


def waited_for(
    pools: Mapping[str, Any], *, is_running: bool, evaluating: list[str] | None = None
) -> tuple[str, str]:
    """Phase of the start, and what it waits for, in words.

    >>> worker = {"node": None, "pid": None, "version": None}
    >>> waited_for({"rollout": {"planned": 2, "workers": [worker]}}, is_running=False)
    ('placing', 'rollout (0 of 2)')
    """
    workers = {role: pool["workers"] for role, pool in pools.items()}
    planned = {role: pool.get("planned", len(workers[role])) for role, pool in pools.items()}
    placed = {role: sum(worker["node"] is not None for worker in workers[role]) for role in pools}
    started = {role: sum(worker["pid"] is not None for worker in workers[role]) for role in pools}
    if is_running:
        loaded = [worker["version"] for worker in workers.get("rollout", [])]
        if any(version is None for version in loaded):
            num = sum(version is not None for version in loaded)
            return "loading weights", f"rollout workers to load the student's weights ({num} of {len(loaded)})"
        if evaluating:
            return "evaluating", f"the evaluation of {' and '.join(evaluating).replace('_', ' ')}"
        return "first batch", "the first batch: generated, scored, trained"
    if any(placed[role] < planned[role] for role in pools):
        return "placing", _missing(placed, planned)
    if any(started[role] < planned[role] for role in pools):
        return "starting engines", _missing(started, planned)
    return "restoring", "the checkpoint, if there is one"


def _missing(have: Mapping[str, int], planned: Mapping[str, int]) -> str:
    return ", ".join(f"{role} ({have[role]} of {planned[role]})" for role in planned if have[role] < planned[role])


def time_left_s(
    rows: Sequence[Mapping[str, Any]], *, max_steps: int, evaluate_every: int, evaluation_s: float = 0.0
) -> float | None:
    """Seconds until the last step is trained and evaluated; None without a row that has times.

    `rows` are metrics rows of recent steps. A step's time includes the pauses before it. Those after a step that
    is evaluated count as often as evaluations are still to come, all others as often as steps are. `evaluation_s`
    is what the evaluation after the last step will take.
    """
    timed = [row for row in rows if row.get("time/step_s", 0) > 0]
    if not timed:
        return None
    left = max(0, max_steps - timed[-1]["step"])
    if left == 0:
        return evaluation_s
    follows = [evaluate_every > 0 and row["step"] > 1 and (row["step"] - 1) % evaluate_every == 0 for row in timed]
    plain = [row["time/step_s"] for row, is_after in zip(timed, follows, strict=True) if not is_after]
    work = _mean([_work_s(row) for row in timed])
    if not plain:  # an evaluation before every step
        return left * _mean([row["time/step_s"] for row in timed]) + evaluation_s
    pauses = [row["time/step_s"] - _work_s(row) for row, is_after in zip(timed, follows, strict=True) if is_after]
    to_come = (max_steps - 1) // evaluate_every - (timed[-1]["step"] - 1) // evaluate_every if pauses else 0
    return left * max(work, _mean(plain)) + to_come * _mean(pauses) + evaluation_s


def _work_s(row: Mapping[str, Any]) -> float:
    return sum(row[key] for key in WORK)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def clock_text(seconds: float) -> str:
    """Seconds for people: `0:07`, `12:03`, `1:02:03`, `2 d 3:04:05`."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {text}" if days else text
