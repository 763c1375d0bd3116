"""How every objective reads log-probs: masked slots out first, then at least float32, then at most 0.

The last step before a reward is used is here too: tokens without a finite reward or gradient are dropped.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def masked_log_probs(logp_BT: Tensor, response_mask_BT: Tensor, *, floor: float | None = None) -> Tensor:
    """Return detached log-probs of at most 0, in float32 (float64 if they come so), and 0 outside the mask.

    With `floor`, lower ones are raised to it: also -inf.
    """
    return selected_log_probs(logp_BT.detach(), response_mask_BT).clamp(min=floor, max=0.0)


def selected_log_probs(logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return the same with the gradient of `logp_BT`, which stays clean of what the masked slots hold.

    Selecting comes before any arithmetic because NaN * 0 is NaN. Engines may return log-probs a little above
    0, which would break the bounds of bounded rewards.
    """
    return at_least_float32(torch.where(response_mask_BT.bool(), logp_BT, 0.0)).clamp(max=0.0)


def log_difference(left_BT: Tensor, right_BT: Tensor) -> Tensor:
    """Return left - right, and 0 where both are -inf, whose difference is NaN."""
    is_same_infinity_BT = (left_BT == right_BT) & left_BT.isinf()
    return torch.where(is_same_infinity_BT, 0.0, left_BT - right_BT)


def zero_where_infinite(reward_BT: Tensor, *logp_BT: Tensor) -> Tensor:
    """Return the reward, and 0 where one of the log-probs that it comes from is infinite; NaN stays NaN.

    An unbounded reward has no value there: the caller masks and counts such tokens (`drop_non_finite`).
    """
    is_infinite_BT = torch.zeros_like(reward_BT, dtype=torch.bool)
    is_nan_BT = torch.zeros_like(is_infinite_BT)
    for values_BT in logp_BT:
        is_infinite_BT = is_infinite_BT | values_BT.isinf()
        is_nan_BT = is_nan_BT | values_BT.isnan()
    return torch.where(is_infinite_BT & ~is_nan_BT, 0.0, reward_BT)


def at_least_float32(values: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


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
