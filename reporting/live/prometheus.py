"""A run on the Prometheus port of its driver's node, through Ray: what it exports, and where the values come from.

Ray exports them as `ray_poweropd_NAME`, with the tag `run` and those named here. The values of metrics rows are
declared in `records/metrics.py`; here is what else there is.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from records.metrics import METRICS, declared
from reporting.live.event_words import counted_as, role_of_event, student_or_role

PREFIX = "poweropd_"


@dataclass(frozen=True)
class Exported:
    """One metric on the port."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    status: str = ""
    """The key under which the status of a run holds its value."""

    @property
    def full_name(self) -> str:
        """As given to Ray."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Sample:
    """A value of a metric: what a gauge is set to, a counter is raised by, a histogram observes."""

    name: str
    value: float
    tags: Mapping[str, str]


REPEAT_S = 5.0
"""Ray sends every 10 s the gauges that were set since, and forgets one after 20 s."""


class HeldGauges:
    """The newest value of every gauge, to be set again: else a value lasts no longer than Ray's memory."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
        self._given = float("-inf")

    def note(self, sample: Sample) -> None:
        """Hold a value in place of the earlier one with these tags."""
        self._newest[sample.name, frozenset(sample.tags.items())] = sample

    def due(self, now_s: float) -> list[Sample]:
        """All values if it is time to set them again, else none; `now_s` on any clock that only rises."""
        if now_s - self._given < REPEAT_S:
            return []
        self._given = now_s
        return [*self._newest.values()]


def _of_rows() -> list[Exported]:
    """What the table of metrics exports; several keys may share a name."""
    found: dict[str, Exported] = {}
    for metric in METRICS:
        if metric.prometheus:
            kind = "counter" if metric.prometheus.endswith("_total") else "gauge"
            tags = (metric.label,) if metric.label else ()
            found[metric.prometheus] = Exported(metric.prometheus, kind, metric.text, tags)
    return [*found.values()]


OTHERS = (
    Exported("max_steps", "gauge", "Optimizer steps of the whole run", status="max_steps"),
    Exported("seconds_left", "gauge", "Estimated seconds until the run is finished", status="left_s"),
    Exported("started_timestamp_seconds", "gauge", "Unix time at which the driver began", status="started"),
    Exported(
        "progress_timestamp_seconds",
        "gauge",
        "Unix time of the last step; before the first, of the start",
        status="progressed",
    ),
    Exported("ended_timestamp_seconds", "gauge", "Unix time of the run's end, finished or drained; else absent"),
    Exported("usual_step_seconds", "gauge", "Median seconds of the recent steps", status="usual_step_s"),
    Exported(
        "staleness_bound",
        "gauge",
        "Largest staleness that is allowed, in weight versions",
        status="staleness_bound",
    ),
    Exported(
        "step_seconds",
        "histogram",
        "Seconds from one step to the next",
        boundaries=(0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    ),
    Exported("checkpoint_step", "gauge", "Step of the newest checkpoint; 0 before the first"),
    Exported("checkpoint_every_steps", "gauge", "Steps from one checkpoint to the next; 0 is only at the end"),
    Exported("checkpoint_bytes", "gauge", "Size of the newest checkpoint of this driver"),
    Exported("checkpoint_failures_total", "counter", "Checkpoints that could not be written"),
    Exported("checkpoints_damaged_total", "counter", "Checkpoints that were found damaged"),
    Exported(
        "disk_free_bytes", "gauge", "Free space where the run writes (`run`, `checkpoints`)", tags=("folder",)
    ),
    Exported("disk_size_bytes", "gauge", "Size of the disk that the run writes to", tags=("folder",)),
    Exported("workers", "gauge", "Workers by role and state of health", tags=("role", "state")),
    Exported("workers_wanted", "gauge", "Workers that a pool should have", tags=("role",)),
    Exported("deaths_total", "counter", "Workers that died", tags=("role",)),
    Exported("restarts_total", "counter", "Workers that came back after a death", tags=("role",)),
    Exported("suspects_total", "counter", "Times that a worker did not answer for a while", tags=("role",)),
    Exported("given_up_total", "counter", "Workers given up after too many restarts", tags=("role",)),
    Exported("evaluation_accuracy", "gauge", "Accuracy (avg@k) in [0, 1]", tags=("benchmark", "model")),
    Exported("evaluation_pass_at_k", "gauge", "pass@k in [0, 1]", tags=("benchmark", "model")),
)
"""What is no key of a metrics row: from the status, from events and evaluations, and the histogram of steps."""

EXPORTED = (*_of_rows(), *OTHERS)
BY_NAME = {exported.name: exported for exported in EXPORTED}

STATES = ("starting", "healthy", "suspect", "dead", "restarting", "stale", "draining")


def samples_of_row(row: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a metrics row."""
    for key, value in row.items():
        metric = declared(key)
        if metric is not None and metric.prometheus:
            tags = {metric.label: metric.variable(key)} if metric.label else {}
            yield Sample(metric.prometheus, float(value), tags)
    if "time/step_s" in row:
        yield Sample("step_seconds", float(row["time/step_s"]), {})


def samples_of_status(status: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a status of the run; a state without workers is 0."""
    for exported in OTHERS:
        if status.get(exported.status) is not None:
            yield Sample(exported.name, float(status[exported.status]), {})
    yield Sample("checkpoint_step", float(status["checkpoint"]["step"]), {})
    yield Sample("checkpoint_every_steps", float(status["checkpoint"]["every_steps"]), {})
    for folder, space in status.get("disk", {}).items():
        yield Sample("disk_free_bytes", float(space["free"]), {"folder": folder})
        yield Sample("disk_size_bytes", float(space["size"]), {"folder": folder})
    for role, pool in status["pools"].items():
        yield Sample("workers_wanted", float(pool["wanted"]), {"role": role})
        states = [worker["state"] for worker in pool["workers"]]
        for state in STATES:
            yield Sample("workers", float(states.count(state)), {"role": role, "state": state})


def samples_of_event(event: Mapping[str, Any]) -> Iterator[Sample]:
    """What an event counts."""
    match event["event"]:
        case "checkpoint":
            yield Sample("checkpoint_bytes", float(event["bytes"]), {})
        case "checkpoint_failed":
            yield Sample("checkpoint_failures_total", 1.0, {})
        case "checkpoint_damaged":
            yield Sample("checkpoints_damaged_total", 1.0, {})
        case _:
            kind = counted_as(event)
            if f"{kind}_total" in BY_NAME:
                yield Sample(f"{kind}_total", 1.0, {"role": role_of_event(event)})


def samples_of_evaluation(row: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a row of `eval.jsonl`."""
    tags = {"benchmark": str(row["benchmark"]), "model": student_or_role(str(row["model"]))}
    for name, key in (("evaluation_accuracy", "avg_at_k"), ("evaluation_pass_at_k", "pass_at_k")):
        if row.get(key) is not None:
            yield Sample(name, float(row[key]), tags)


class Prometheus:
    """Gives Ray the values that a run tells. Ray must be connected; nothing here waits.

    Gauges stay on the port as long as `status` is called again and again.
    """

    def __init__(self, run_name: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        kinds = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}
        self._metrics: dict[str, Any] = {}
        for exported in EXPORTED:
            given: dict[str, Any] = {"description": exported.text, "tag_keys": ("run", *exported.tags)}
            if exported.boundaries:
                given["boundaries"] = [*exported.boundaries]
            made = kinds[exported.kind](exported.full_name, **given)
            made.set_default_tags({"run": run_name})
            self._metrics[exported.name] = made
        self._held = HeldGauges()

    def step(self, row: Mapping[str, Any]) -> None:
        """Give the values of a metrics row."""
        self._give(samples_of_row(row))

    def status(self, status: Mapping[str, Any]) -> None:
        """Give the values of a status of the run, and again those that Ray would forget."""
        self._give(samples_of_status(status))
        self._give(self._held.due(time.monotonic()))

    def event(self, event: Mapping[str, Any]) -> None:
        """Count an event."""
        self._give(samples_of_event(event))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Give the values of an evaluation."""
        self._give(samples_of_evaluation(row))

    def ended(self) -> None:
        """Note that the run has finished, or was drained. Ray sends it when this process leaves it."""
        self._give([Sample("ended_timestamp_seconds", time.time(), {})])

    def _give(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            metric, tags = self._metrics[sample.name], dict(sample.tags)
            match BY_NAME[sample.name].kind:
                case "gauge":
                    self._held.note(sample)
                    metric.set(sample.value, tags)
                case "counter":
                    if sample.value > 0:
                        metric.inc(sample.value, tags)
                case "histogram":
                    metric.observe(sample.value, tags)
