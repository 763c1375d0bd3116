"""The metrics of `prometheus_table.py` through Ray: they appear on the Prometheus port of the driver's node."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from reporting.live.prometheus_table import (
    METRICS,
    HeldGauges,
    Sample,
    samples_of_evaluation,
    samples_of_event,
    samples_of_row,
    samples_of_status,
)


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
