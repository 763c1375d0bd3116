"""How long the learner waited for a batch."""

from dataclasses import dataclass


@dataclass
class Waits:
    """Seconds the learner waited for its last batch, by the stage it waited for."""

    rollout_s: float = 0.0
    score_s: float = 0.0
