"""The PowerOPD reward (arXiv 2606.17199, Eq. 4), and the divergence that it descends in expectation (derived).

With `r = t**alpha - p**alpha`, the expectation over p of `-r` times the gradient of `log p` is the gradient of

    D = sum of p**(1 + alpha) - (1 + alpha) * p * t**alpha + alpha * t**(1 + alpha), over 1 + alpha

the density-power divergence: at least 0, and 0 only at p = t, for every alpha. D over alpha tends to KL(p || t)
as alpha -> 0, and alpha 1 is half the squared distance of the probabilities.

Shapes: B sequences, T tokens, N positions, V vocabulary. Student `p`, teacher `t`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewards.log_probs import log_difference, masked_log_probs
from rewards.teacher import Teacher, student_log_probs, teacher_log_probs


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


def power_full(
    student_logits_NV: Tensor, teacher: Teacher, *, alpha: float = 5.0, rescale: str = "none"
) -> Tensor:
    """Return D per position, or D / alpha with `rescale="inv_alpha"`: differentiable in the student, once.

    The value is summed as `alpha * t**alpha * (t - p) - p * (t**alpha - p**alpha)`, in which no digit is lost for
    a small alpha. Its gradient is the closed form `-p * r` per log-prob, for the same reason.
    """
    log_p_NV = student_log_probs(student_logits_NV)
    with torch.no_grad():
        log_t_NV = teacher_log_probs(teacher, log_p_NV)
        p_NV = log_p_NV.exp()
        all_NV = torch.ones_like(log_p_NV, dtype=torch.bool)
        power_gap_NV = power_reward(log_t_NV, log_p_NV, all_NV, alpha=alpha)
        gap_NV = power_reward(log_t_NV, log_p_NV, all_NV, alpha=1.0)
        # The gaps of a position sum to 0, so that 1 may be taken off t**alpha.
        teacher_part_NV = alpha * torch.expm1(alpha * log_t_NV) * gap_NV
        divergence_N = (teacher_part_NV - p_NV * power_gap_NV).sum(-1) / (1.0 + alpha)
        slope_NV = -p_NV * power_gap_NV
    value_N = with_gradient(divergence_N, log_p_NV, slope_NV)
    return value_N / alpha if rescale == "inv_alpha" else value_N


def with_gradient(value_N: Tensor, log_p_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """Return `value_N` with the gradient `slope_NV` in `log_p_NV`; both are taken as constants."""
    finite_NV = log_p_NV.masked_fill(log_p_NV.detach() == -math.inf, 0.0)
    return value_N.detach() + (slope_NV.detach() * (finite_NV - finite_NV.detach())).sum(-1)
