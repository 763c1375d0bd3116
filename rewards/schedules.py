"""Values that change over training, as functions of the optimizer step. No torch."""

from __future__ import annotations


def scheduled_beta(
    beta_start: float, beta_end: float, schedule: str, *, step: int | None = None, max_steps: int | None = None
) -> float:
    """Return beta at an optimizer step, counted from 0: linear from start to end, or constantly its start.

    Without a step the schedule stands at its start.

    >>> scheduled_beta(0.8, 0.0, "linear", step=5, max_steps=10)
    0.4
    """
    if schedule == "constant" or step is None:
        return beta_start
    if max_steps is None:
        raise ValueError(f"max_steps must be given with step {step}: a linear schedule ends there")
    progress = min(max(step / max(max_steps, 1), 0.0), 1.0)
    return beta_start + (beta_end - beta_start) * progress
