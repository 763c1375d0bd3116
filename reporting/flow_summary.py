"""Waits, back-pressure and use over several steps, for people: from what `controller/flow.py` writes into rows."""

from collections.abc import Mapping, Sequence
from typing import Any

Means = dict[str, dict[str, float]]


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
    busy = [f"{name} {share:.0%}".replace("%", " %") for name, share in means["busy"].items()]
    return f"waits for: {', '.join(waits)}; busy: {', '.join(busy)}"


def _held_up(share: float) -> str:
    return f" (held up {share:.0%})".replace("%", " %") if share >= 0.005 else ""
