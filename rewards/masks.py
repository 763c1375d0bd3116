"""Which response tokens to train on: every mask is a part of the response mask; the caller counts what it drops.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

COUNT_ROUNDING = 1e-9
"""0.07 * 100 is a little more than 7 in floating point, which must not make an eighth token."""


def special_token_mask(
    response_mask_BT: Tensor, *, response_ids_BT: Tensor, special_token_ids: Iterable[int]
) -> Tensor:
    """Return the mask without the first occurrence per response of each special token id.

    Revisiting OPD (arXiv 2603.25562) drops the ids of `<`, `think` and `<|im_end|>`, where a teacher with
    another template gives log-probs near -20 to correct tokens.
    """
    mask_BT = response_mask_BT.bool()
    keep_BT = mask_BT
    for token_id in special_token_ids:
        is_token_BT = (response_ids_BT == token_id) & mask_BT
        keep_BT = keep_BT & ~(is_token_BT & (is_token_BT.cumsum(dim=-1) == 1))
    return keep_BT


def truncated_mask(response_mask_BT: Tensor, *, is_truncated_B: Tensor) -> Tensor:
    """Return the mask without the responses that were cut off at the length limit (DAPO's overlong filter)."""
    return response_mask_BT.bool() & ~is_truncated_B.bool().unsqueeze(-1)


def entropy_top_mask(
    response_mask_BT: Tensor,
    *,
    student_entropy_BT: Tensor,
    entropy_threshold: Tensor | float | None = None,
    top_fraction: float = 0.2,
) -> Tensor:
    """Return the `top_fraction` of tokens with the highest student entropy; tokens that tie are kept.

    `entropy_threshold` is `top_fraction_threshold` of the whole window; by default it is this tensor's own.
    """
    if entropy_threshold is None:
        entropy_threshold = top_fraction_threshold(student_entropy_BT, response_mask_BT, top_fraction)
    return response_mask_BT.bool() & (student_entropy_BT.detach() >= entropy_threshold)


def top_fraction_threshold(values_BT: Tensor, response_mask_BT: Tensor, top_fraction: float) -> Tensor:
    """Return the smallest of the ceil(top_fraction * count) highest unmasked values; inf if none is unmasked."""
    mask_BT = response_mask_BT.bool()
    highest_first = torch.where(mask_BT, values_BT.detach(), -inf).flatten().sort(descending=True).values
    if highest_first.numel() == 0:
        return highest_first.new_full((), inf)
    num_tokens = mask_BT.sum()
    num_kept = torch.ceil(top_fraction * num_tokens.double() - COUNT_ROUNDING).long().clamp(min=1)
    return torch.where(num_tokens > 0, highest_first[num_kept - 1], inf)


def fire_opd_mask(response_mask_BT: Tensor, *, teacher_logp_BT: Tensor, lowest_quantile: float = 0.2) -> Tensor:
    """Return the mask without the responses whose mean teacher log-prob is below the quantile (FiRe-OPD).

    The quantile is over the responses of this tensor: give it whole windows, of more than one response.
    """
    mask_BT = response_mask_BT.bool()
    num_tokens_B = mask_BT.sum(dim=-1)
    mean_B = torch.where(mask_BT, teacher_logp_BT.detach(), 0.0).double().sum(-1) / num_tokens_B.clamp(min=1)
    is_counted_B = num_tokens_B > 0
    if not is_counted_B.any():
        return mask_BT
    is_kept_B = mean_B >= torch.quantile(mean_B[is_counted_B], lowest_quantile)
    return mask_BT & is_kept_B.unsqueeze(-1)
