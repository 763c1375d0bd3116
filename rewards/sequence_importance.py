"""Importance weights of whole responses: one ratio per response, or the rejection of all its tokens.

Shapes: B sequences, T tokens. Rows are whole responses. Every weight is detached, and 0 outside the mask.
Rejected tokens keep their place in the denominator of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.importance_ratio import clamped_exp, log_importance_ratio


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


def _sequence_ratio(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    return clamped_exp(log_importance_ratio(logp_BT.detach(), behaviour_logp_BT, response_mask_BT).sum(dim=-1))


def _mean_over_tokens(values_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    return values_BT.sum(dim=-1) / response_mask_BT.bool().sum(dim=-1).clamp(min=1)


def _pass(measure_B: Tensor, is_kept_B: Tensor) -> Tensor:
    """Return 1 or 0, and NaN where the measure is NaN."""
    return torch.where(measure_B.isnan(), measure_B, is_kept_B.to(measure_B.dtype))


def _on_tokens(weight_B: Tensor, response_mask_BT: Tensor) -> Tensor:
    return torch.where(response_mask_BT.bool(), weight_B.unsqueeze(-1), 0.0)
