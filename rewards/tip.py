"""TIP: train on the tokens that are uncertain for the student, or far from the teacher (arXiv 2604.14084).

Shapes: B sequences, T tokens. Every result is detached.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from rewards.log_probs import at_least_float32
from rewards.masks import top_fraction_threshold


def tip_mask(
    response_mask_BT: Tensor,
    *,
    student_entropy_BT: Tensor,
    reverse_kl_BT: Tensor,
    keep: float = 0.5,
) -> Tensor:
    """Return the share `keep` of tokens with the highest score; tokens that tie are kept."""
    score_BT = tip_score(response_mask_BT, student_entropy_BT=student_entropy_BT, reverse_kl_BT=reverse_kl_BT)
    threshold = top_fraction_threshold(score_BT, response_mask_BT, keep)
    return response_mask_BT.bool() & (score_BT >= threshold)


def tip_score(response_mask_BT: Tensor, *, student_entropy_BT: Tensor, reverse_kl_BT: Tensor) -> Tensor:
    """Return `h + d - h * d` of the two, scaled to [0, 1] over the unmasked tokens; 0 outside the mask."""
    entropy_BT = scaled_to_unit(student_entropy_BT, response_mask_BT)
    divergence_BT = scaled_to_unit(reverse_kl_BT, response_mask_BT)
    return entropy_BT + divergence_BT * (1.0 - entropy_BT)


def scaled_to_unit(values_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return (value - min) / (max - min) over the unmasked tokens; 0 if they are all the same."""
    mask_BT = response_mask_BT.bool()
    values_BT = at_least_float32(values_BT.detach())
    if values_BT.numel() == 0:
        return values_BT
    lowest = torch.where(mask_BT, values_BT, inf).amin()
    highest = torch.where(mask_BT, values_BT, -inf).amax()
    return torch.where(mask_BT & (highest > lowest), (values_BT - lowest) / (highest - lowest), 0.0)
