"""Importance weights: how far the current policy has moved from the one that sampled a token.

A weight belongs to a token, or to a whole response: then rows are whole responses, and rejected tokens keep their
place in the denominator of the loss.

Shapes: B sequences, T tokens. Every weight is detached, and 0 outside the mask. `logp_BT` is under the current
policy, or under the proximal one to correct for the engine alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_probs import at_least_float32, log_difference, masked_log_probs, selected_log_probs

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp, so that no weight overflows."""


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


def sequence_weight(
    logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor, *, cap: float = 2.0
) -> Tensor:
    """Return the ratio of the whole response, at most `cap`, on each of its tokens."""
    return _on_tokens(
        _sequence_ratio(logp_BT, behaviour_logp_BT, response_mask_BT).clamp(max=cap), response_mask_BT
    )


def sequence_mask(
    logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor, *, cap: float = 3.0
) -> Tensor:
    """Return the ratio of the whole response on each of its tokens, and 0 if it is above the cap."""
    ratio_B = _sequence_ratio(logp_BT, behaviour_logp_BT, response_mask_BT)
    return _on_tokens(torch.where(ratio_B > cap, 0.0, ratio_B), response_mask_BT)


def geometric_mask(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = 0.999,
    high: float = 1.001,
) -> Tensor:
    """Return 1 on the tokens of a response whose geometric mean ratio lies in [low, high], 0 on others."""
    log_ratio_BT = log_importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    ratio_B = clamped_exp(_mean_over_tokens(log_ratio_BT, response_mask_BT))
    return _on_tokens(_pass(ratio_B, (ratio_B >= low) & (ratio_B <= high)), response_mask_BT)


def k3_mask(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor, *, high: float = 0.1) -> Tensor:
    """Return 1 on the tokens of a response whose mean `ratio - log ratio - 1` is at most `high`, 0 on others."""
    log_ratio_BT = log_importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT)
    mismatch_BT = clamped_exp(log_ratio_BT) - log_ratio_BT - 1.0
    mismatch_B = _mean_over_tokens(mismatch_BT, response_mask_BT)
    return _on_tokens(_pass(mismatch_B, mismatch_B <= high), response_mask_BT)


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


def _sequence_ratio(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    return clamped_exp(log_importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT).sum(dim=-1))


def _mean_over_tokens(values_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    return values_BT.sum(dim=-1) / response_mask_BT.bool().sum(dim=-1).clamp(min=1)


def _pass(measure_B: Tensor, is_kept_B: Tensor) -> Tensor:
    """Return 1 or 0, and NaN where the measure is NaN."""
    return torch.where(measure_B.isnan(), measure_B, is_kept_B.to(measure_B.dtype))


def _on_tokens(weight_B: Tensor, response_mask_BT: Tensor) -> Tensor:
    return torch.where(response_mask_BT.bool(), weight_B.unsqueeze(-1), 0.0)
