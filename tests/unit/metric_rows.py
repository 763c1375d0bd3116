"""Rows of `metrics.jsonl` with every key that a run writes: made from the table of metrics."""

from typing import Any

from records.metrics import METRICS

VALUES = {"s": 0.5, "tokens": 100, "tokens/s": 900.0, "slots/s": 3.0, "bytes": 4096, "steps": 0, "prompts": 0}
"""By unit; any other value is a quarter."""


def metrics_row(step: int = 1, **values: Any) -> dict[str, Any]:
    """A row of a step of two seconds; `values` have `__` for the slash."""
    row = {key: VALUES.get(metric.unit, 0.25) for metric in METRICS for key in metric.required}
    row |= {"step": step, "weight_version": step, "time_s": 1000.0 + 2 * step, "time/step_s": 2.0}
    return row | {key.replace("__", "/"): value for key, value in values.items()}
