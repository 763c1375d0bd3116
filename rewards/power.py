"""The PowerOPD reward: the difference of two probabilities, each raised to alpha (arXiv 2606.17199, Eq. 4).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_probs import log_difference, masked_log_probs


def power_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    alpha: float = 5.0,
    rescale: str = "none",
) -> Tensor:
    """Return `p_teacher**alpha - p_student**alpha` per token: in [-1, 1], detached, 0 outside the mask.

    `student_logp_BT` is under the current student. With `rescale="inv_alpha"` the reward is divided by alpha:
    the difference of Box-Cox transforms (Eq. 3), which tends to the log-ratio as alpha -> 0.

    The larger power is factored out and the rest taken by expm1, so that near-equal probabilities and small
    alpha keep their digits: `p**a - q**a = p**a * (1 - (q / p)**a)`. A log-prob of -inf is a probability of
    0, and is legal.
    """
    teacher_BT = masked_log_probs(teacher_logp_BT, response_mask_BT)
    student_BT = masked_log_probs(student_logp_BT, response_mask_BT)
    log_ratio_BT = log_difference(teacher_BT, student_BT)
    larger_power_BT = torch.exp(alpha * torch.maximum(teacher_BT, student_BT))
    shortfall_BT = -torch.expm1(-alpha * log_ratio_BT.abs())
    reward_BT = log_ratio_BT.sign() * larger_power_BT * shortfall_BT
    return reward_BT / alpha if rescale == "inv_alpha" else reward_BT
