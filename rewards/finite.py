"""The last step before a reward is used: tokens without a finite reward or gradient are masked and counted.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FiniteReward:
    """A reward that is finite everywhere, and the mask to use with it from here on."""

    reward_BT: Tensor
    keep_BT: Tensor
    num_dropped: Tensor
    """Integer scalar on the reward's device: unmasked tokens that were dropped."""


def drop_non_finite(
    reward_BT: Tensor, logp_BT: Tensor, response_mask_BT: Tensor, *others_BT: Tensor
) -> FiniteReward:
    """Keep the unmasked tokens whose reward, log-prob and `others_BT` are finite; the reward is 0 elsewhere.

    `logp_BT` is the log-prob that the loss multiplies with the reward: its gradient at -inf is not finite
    even where the reward is. A teacher log-prob of -inf is no reason to drop a token with a bounded reward; pass
    it among `others_BT` where the objective needs it finite (`Entry.needs_finite_teacher`).
    Select the log-prob by `keep_BT` too before it is multiplied, or the backward pass meets 0 * inf.

    >>> kept = drop_non_finite(reward_BT, logp_BT, response_mask_BT)
    >>> loss_BT = -kept.reward_BT * torch.where(kept.keep_BT, logp_BT, 0.0)
    """
    mask_BT = response_mask_BT.bool()
    keep_BT = mask_BT
    for values_BT in (reward_BT, logp_BT, *others_BT):
        keep_BT = keep_BT & values_BT.detach().isfinite()
    return FiniteReward(
        reward_BT=torch.where(keep_BT, reward_BT, 0.0),
        keep_BT=keep_BT,
        num_dropped=(mask_BT & ~keep_BT).sum(),
    )
