"""The importance ratio: how much likelier a token is under one policy than under another.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from rewards.log_probs import log_difference, masked_log_probs, selected_log_probs

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp, so that no weight overflows."""


def log_importance_ratio(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return `logp - behaviour_logp` with the gradient of `logp_BT`, 0 outside the mask."""
    current_BT = selected_log_probs(logp_BT, response_mask_BT)
    behaviour_BT = masked_log_probs(behaviour_logp_BT, response_mask_BT)
    return log_difference(current_BT, behaviour_BT)


def importance_ratio(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return `exp(logp - behaviour_logp)` with the gradient of `logp_BT`, 1 outside the mask."""
    return clamped_exp(log_importance_ratio(logp_BT, behaviour_logp_BT, response_mask_BT))


def clamped_exp(log_ratio: Tensor) -> Tensor:
    """Return exp of the log-ratio, clamped to +-LARGEST_LOG_RATIO."""
    return log_ratio.clamp(min=-LARGEST_LOG_RATIO, max=LARGEST_LOG_RATIO).exp()
