"""Importance weights: how far the current policy has moved from the one that sampled a token.

Shapes: B sequences, T tokens. Every weight is detached, and 0 outside the mask. `logp_BT` is under the current
policy, or under the proximal one to correct for the engine alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.importance_ratio import importance_ratio
from rewards.log_probs import at_least_float32


def unit_weight(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return 1 for every response token."""
    ones_BT = torch.ones_like(at_least_float32(logp_BT.detach()))
    return torch.where(response_mask_BT.bool(), ones_BT, 0.0)


def unclipped_weight(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return `exp(logp - behaviour_logp)`: unbiased, with the largest variance."""
    ratio_BT = importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    return torch.where(response_mask_BT.bool(), ratio_BT, 0.0)


def truncated_weight(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> Tensor:
    """Return `exp(logp - behaviour_logp)` clipped to [low, high]: 1 where both policies agree."""
    ratio_BT = importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    return torch.where(response_mask_BT.bool(), ratio_BT.clamp(min=low, max=high), 0.0)


def icepop_weight(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = 0.5,
    high: float = 2.0,
) -> Tensor:
    """Return `exp(logp - behaviour_logp)` where it lies in [low, high], 0 elsewhere; NaN stays NaN."""
    ratio_BT = importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    is_outside_BT = (ratio_BT < low) | (ratio_BT > high)
    return torch.where(response_mask_BT.bool() & ~is_outside_BT, ratio_BT, 0.0)


def decoupled_weight(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    proximal_logp_BT: Tensor,
    cap: float = 5.0,
) -> Tensor:
    """Return `exp(proximal_logp - behaviour_logp)`, 0 above the cap.

    The proximal policy is the learner's own at the start of the window: this weight is for a surrogate whose
    ratio is taken against it, so that `logp_BT` has no part in it.
    """
    ratio_BT = importance_ratio(proximal_logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    return torch.where(response_mask_BT.bool() & ~(ratio_BT > cap), ratio_BT, 0.0)
