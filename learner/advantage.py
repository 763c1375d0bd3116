"""Reward -> advantage: what follows is credited too, or what was expected is subtracted, and tokens are weighed.

    credit    = reward + discount * next reward + ...        or        reward - baseline
    advantage = weight * (opd_coef * credit + rl_coef * the graded response's advantage in its group)

Shapes: T response tokens of a micro-batch.
"""

import torch
from torch import Tensor

from learner.collate import PackedBatch
from rewards import mix_outcome, return_to_go
from settings.objective import ObjectiveConfig, OutcomeConfig


class Advantage:
    """The stages between the (normalised) reward and the surrogate; every result is detached."""

    def __init__(self, objective: ObjectiveConfig, outcome: OutcomeConfig) -> None:
        self.discount = objective.discount
        self.outcome = outcome

    def __call__(
        self,
        batch: PackedBatch,
        reward_T: Tensor,
        keep_T: Tensor,
        *,
        baseline_T: Tensor | None = None,
        weight_T: Tensor | None = None,
    ) -> Tensor:
        """Return advantage_T. Tokens outside `keep_T` have no reward, but keep their place in the response.

        A relabelled stop token, which no policy sampled, keeps its whole reward: a baseline is the expectation
        over sampled tokens.
        """
        advantage_T = reward_T
        if self.discount > 0.0:
            return_BT = return_to_go(batch.unpack(reward_T), batch.unpack(keep_T), discount=self.discount)
            advantage_T = return_BT[batch.row_T, batch.column_T]
        if baseline_T is not None:
            advantage_T = advantage_T - torch.where(batch.was_sampled_T, baseline_T, 0.0)
        if self.outcome.rl_coef > 0.0:
            coefficients = {"rl_coef": self.outcome.rl_coef, "opd_coef": self.outcome.opd_coef}
            graded_T = batch.outcome_advantage_B[batch.row_T]
            advantage_T = mix_outcome(graded_T, advantage_T[:, None], keep_T[:, None], **coefficients)[:, 0]
        if weight_T is not None:
            advantage_T = advantage_T * weight_T
        return advantage_T
