"""Every Prometheus metric of a run in one table, and where its values come from. Pure: no Ray.

Ray exports them as `ray_poweropd_NAME`, with the tag `run` and those named here.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from reporting.live.event_words import KIND_OF_EVENT, role_of_event, student_or_role

PREFIX = "poweropd_"


@dataclass(frozen=True)
class Metric:
    """One metric. `key` is a key of a metrics row; its `*` is the value of the only tag."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    key: str | None = None
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

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


METRICS = (
    Metric("step", "gauge", "Optimizer steps taken", "step"),
    Metric("max_steps", "gauge", "Optimizer steps of the whole run"),
    Metric("seconds_left", "gauge", "Estimated seconds until the run is finished"),
    Metric("started_timestamp_seconds", "gauge", "Unix time at which the driver began"),
    Metric("progress_timestamp_seconds", "gauge", "Unix time of the last step; before the first, of the start"),
    Metric("ended_timestamp_seconds", "gauge", "Unix time of the run's end, finished or drained; else absent"),
    Metric("usual_step_seconds", "gauge", "Median seconds of the recent steps"),
    Metric("weight_version", "gauge", "Version of the newest weights", "weight_version"),
    Metric("reward_mean", "gauge", "Mean reward of a trained token", "reward/mean"),
    Metric("reverse_kl", "gauge", "Mean of student minus teacher log-prob over trained tokens", "kl/reverse"),
    Metric("mismatch_kl", "gauge", "Difference between learner and student engine", "kl/mismatch"),
    Metric("loss", "gauge", "Loss of the step", "loss"),
    Metric("gradient_norm", "gauge", "Norm of the gradient before clipping", "grad_norm"),
    Metric("learning_rate", "gauge", "Learning rate of the step", "lr"),
    Metric("entropy", "gauge", "Mean entropy of the student at trained tokens", "entropy"),
    Metric("importance_capped_fraction", "gauge", "Share of capped importance weights", "importance/capped_frac"),
    Metric("staleness_mean", "gauge", "Mean staleness of trained tokens, in weight versions", "staleness/mean"),
    Metric("staleness_max", "gauge", "Largest staleness of a trained token, in weight versions", "staleness/max"),
    Metric("staleness_bound", "gauge", "Largest staleness that is allowed, in weight versions"),
    Metric("response_length_mean", "gauge", "Mean tokens of a response", "response_length/mean"),
    Metric("truncated_fraction", "gauge", "Share of responses cut at the limit", "truncated_frac"),
    Metric("throughput_tokens_per_second", "gauge", "Tokens per second of a pool", "throughput/*", ("role",)),
    Metric("busy_fraction", "gauge", "Share of worker-time with work in hand", "busy/*", ("role",)),
    Metric("queue_length", "gauge", "Slots in a queue (`rollouts`, `scored`, `in_flight`)", "queue/*", ("queue",)),
    Metric("wait_seconds", "gauge", "Mean seconds that a slot waited for a pool", "wait/*_s", ("role",)),
    Metric(
        "backpressure_seconds_total",
        "counter",
        "Seconds in which the full queue before a pool held its producers up",
        "backpressure/*_s",
        ("role",),
    ),
    Metric("stage_seconds", "gauge", "Seconds of the last step (`step`) and its stages", "time/*_s", ("stage",)),
    Metric(
        "step_seconds",
        "histogram",
        "Seconds from one step to the next",
        "time/step_s",
        boundaries=(0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    ),
    Metric("tokens_trained_total", "counter", "Response tokens trained", "tokens_trained"),
    Metric("prompts_given_up", "gauge", "Prompts given up so far", "prompts_given_up"),
    Metric("skipped_steps_total", "counter", "Steps without a finite gradient, which were skipped", "skipped"),
    Metric("checkpoint_step", "gauge", "Step of the newest checkpoint; 0 before the first"),
    Metric("checkpoint_every_steps", "gauge", "Steps from one checkpoint to the next; 0 is only at the end"),
    Metric("checkpoint_bytes", "gauge", "Size of the newest checkpoint of this driver"),
    Metric("checkpoint_failures_total", "counter", "Checkpoints that could not be written"),
    Metric("checkpoints_damaged_total", "counter", "Checkpoints that were found damaged"),
    Metric("disk_free_bytes", "gauge", "Free space where the run writes (`run`, `checkpoints`)", tags=("folder",)),
    Metric("disk_size_bytes", "gauge", "Size of the disk that the run writes to", tags=("folder",)),
    Metric("workers", "gauge", "Workers by role and state of health", tags=("role", "state")),
    Metric("workers_wanted", "gauge", "Workers that a pool should have", tags=("role",)),
    Metric("deaths_total", "counter", "Workers that died", tags=("role",)),
    Metric("restarts_total", "counter", "Workers that came back after a death", tags=("role",)),
    Metric("suspects_total", "counter", "Times that a worker did not answer for a while", tags=("role",)),
    Metric("given_up_total", "counter", "Workers given up after too many restarts", tags=("role",)),
    Metric("evaluation_accuracy", "gauge", "Accuracy (avg@k) in [0, 1]", tags=("benchmark", "model")),
    Metric("evaluation_pass_at_k", "gauge", "pass@k in [0, 1]", tags=("benchmark", "model")),
)

BY_NAME = {metric.name: metric for metric in METRICS}

KEY_IN_STATUS = {
    "max_steps": "max_steps",
    "seconds_left": "left_s",
    "started_timestamp_seconds": "started",
    "progress_timestamp_seconds": "progressed",
    "usual_step_seconds": "usual_step_s",
    "staleness_bound": "staleness_bound",
}
"""Metrics that the status of a run holds as they are, and their keys there."""

STATES = ("starting", "healthy", "suspect", "dead", "restarting", "stale", "draining")


def samples_of_row(row: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a metrics row."""
    for metric in METRICS:
        if metric.key is None:
            continue
        head, star, tail = metric.key.partition("*")
        keys = [key for key in row if key.startswith(head) and key.endswith(tail)] if star else [metric.key]
        for key in keys:
            if key in row:
                tag = key[len(head) : len(key) - len(tail)]
                yield Sample(metric.name, float(row[key]), {metric.tags[0]: tag} if star else {})


def samples_of_status(status: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a status of the run; a state without workers is 0."""
    for name, key in KEY_IN_STATUS.items():
        if status.get(key) is not None:
            yield Sample(name, float(status[key]), {})
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
        case name:
            kind = KIND_OF_EVENT.get(name)
            if f"{kind}_total" in BY_NAME:
                yield Sample(f"{kind}_total", 1.0, {"role": role_of_event(event)})


def samples_of_evaluation(row: Mapping[str, Any]) -> Iterator[Sample]:
    """The values in a row of `eval.jsonl`."""
    tags = {"benchmark": str(row["benchmark"]), "model": student_or_role(str(row["model"]))}
    for name, key in (("evaluation_accuracy", "avg_at_k"), ("evaluation_pass_at_k", "pass_at_k")):
        if row.get(key) is not None:
            yield Sample(name, float(row[key]), tags)


# -- prometheus --------------------------------------------------------------------------------------------
# The metrics of `prometheus_table.py` through Ray: they appear on the Prometheus port of the driver's node.


class Prometheus:
    """Gives Ray the values that a run tells. Ray must be connected; nothing here waits.

    Gauges stay on the port as long as `status` is called again and again.
    """

    def __init__(self, run_name: str) -> None:
        self._metrics: dict[str, Gauge | Counter | Histogram] = {}
        for metric in METRICS:
            given: dict[str, Any] = {"description": metric.text, "tag_keys": ("run", *metric.tags)}
            match metric.kind:
                case "gauge":
                    made = Gauge(metric.full_name, **given)
                case "counter":
                    made = Counter(metric.full_name, **given)
                case "histogram":
                    made = Histogram(metric.full_name, boundaries=[*metric.boundaries], **given)
            made.set_default_tags({"run": run_name})
            self._metrics[metric.name] = made

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
            tags = dict(sample.tags)
            match self._metrics[sample.name]:
                case Gauge() as gauge:
                    self._held.note(sample)
                    gauge.set(sample.value, tags)
                case Counter() as counter if sample.value > 0:
                    counter.inc(sample.value, tags)
                case Histogram() as histogram:
                    histogram.observe(sample.value, tags)
