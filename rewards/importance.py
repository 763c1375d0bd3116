"""Importance weights: how far the current policy has moved from the one that sampled a token.

Shapes: B sequences, T tokens. Every weight is detached and 0 outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_probs import at_least_float32, log_difference, masked_log_probs

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp, so that no weight overflows."""


def unit_weight(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return 1 for every response token."""
    ones_BT = torch.ones_like(at_least_float32(logp_BT.detach()))
    return torch.where(response_mask_BT.bool(), ones_BT, 0.0)


def truncated_weight(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> Tensor:
    """Return `exp(logp - behaviour_logp)` clipped to [low, high]: 1 where both policies agree."""
    current_BT = masked_log_probs(logp_BT, response_mask_BT)
    behaviour_BT = masked_log_probs(behaviour_logp_BT, response_mask_BT)
    log_ratio_BT = log_difference(current_BT, behaviour_BT)
    ratio_BT = log_ratio_BT.clamp(min=-LARGEST_LOG_RATIO, max=LARGEST_LOG_RATIO).exp()
    return torch.where(response_mask_BT.bool(), ratio_BT.clamp(min=low, max=high), 0.0)
