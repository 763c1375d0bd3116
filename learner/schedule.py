"""Step -> learning rate: a pure function, so that a resumed run needs no scheduler state."""

import math

from settings.learner import LearnerConfig


def learning_rate(config: LearnerConfig, *, step: int, max_steps: int) -> float:
    """Return the learning rate of the update that takes version `step` to `step + 1`.

    Warm-up is linear and its first step already trains, at peak / warmup_steps. After it the rate stays
    (`constant`) or falls (`linear`, `cosine`) from the peak to `lr_final_fraction` of it at `max_steps`.

    >>> [learning_rate(config, step=step, max_steps=6) for step in (0, 1, 2, 4)]  # peak 1, warm-up 2, linear
    [0.5, 1.0, 1.0, 0.5]
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return peak
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    left = 1.0 - progress if config.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (config.lr_final_fraction + (1.0 - config.lr_final_fraction) * left)
