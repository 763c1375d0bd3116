"""Reward -> advantage: what follows is credited too, or what was expected is subtracted, and tokens are weighed.

    advantage = weight * (reward + discount * next reward + ...)        or        weight * (reward - baseline)

Shapes: T response tokens of a micro-batch.
"""

import torch
from torch import Tensor

from cluster.config import ObjectiveConfig
from learner.collate import PackedBatch
from rewards import return_to_go


class Advantage:
    """The stages between the (normalised) reward and the surrogate; every result is detached."""

    def __init__(self, objective: ObjectiveConfig) -> None:
        self.discount = objective.discount

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
        if weight_T is not None:
            advantage_T = advantage_T * weight_T
        return advantage_T
