"""Weights of tokens by their place or their entropies; they multiply any reward.

Shapes: B sequences, T tokens. Every weight is detached and 0 outside the mask.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from rewards.log_probs import at_least_float32

SMALLEST_DENOMINATOR = 1e-8


def iw_opd_weight(response_mask_BT: Tensor, *, advantage_BT: Tensor, gamma: float = 0.5) -> Tensor:
    """Return `1 + gamma * (1 - share)`, with the share of |advantage| that lies before a token (arXiv 2606.22600).

    Earlier tokens weigh more. Rows are whole responses. The paper's advantage is the teacher's log-prob minus
    the behaviour log-prob.
    """
    mask_BT = response_mask_BT.bool()
    size_BT = at_least_float32(torch.where(mask_BT, advantage_BT.detach(), 0.0)).abs()
    before_BT = size_BT.cumsum(dim=-1) - size_BT
    total_B1 = size_BT.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_DENOMINATOR)
    return torch.where(mask_BT, 1.0 + gamma * (1.0 - before_BT / total_B1), 0.0)


def fire_opd_weight(
    response_mask_BT: Tensor,
    *,
    teacher_entropy_BT: Tensor,
    student_entropy_BT: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """Return `(1 + alpha * (1 - H_T / max H_T)) * (1 + beta * H_S / max H_S)`, scaled to mean 1 (FiRe-OPD).

    The teacher is sure and the student is not: such tokens weigh most. Maxima and mean are over the unmasked
    tokens of this tensor.
    """
    mask_BT = response_mask_BT.bool()
    teacher_BT = _over_largest(teacher_entropy_BT, mask_BT)
    student_BT = _over_largest(student_entropy_BT, mask_BT)
    raw_BT = (1.0 + alpha * (1.0 - teacher_BT)) * (1.0 + beta * student_BT)
    kept_BT = torch.where(mask_BT, raw_BT, 0.0)
    mean = kept_BT.sum() / mask_BT.sum().clamp(min=1)
    return kept_BT / mean.clamp(min=SMALLEST_DENOMINATOR)


def _over_largest(entropy_BT: Tensor, mask_BT: Tensor) -> Tensor:
    kept_BT = at_least_float32(torch.where(mask_BT, entropy_BT.detach(), 0.0))
    largest = kept_BT.amax() if kept_BT.numel() > 0 else kept_BT.new_full((), inf)
    return kept_BT / largest.clamp(min=SMALLEST_DENOMINATOR)
