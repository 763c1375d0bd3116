"""Divergences over the whole vocabulary: both KLs, their linear mix, and the generalised Jensen-Shannon.

Shapes: N positions, V vocabulary. Student `p`, teacher `t`. Values are differentiable in the student.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewards.teacher import Teacher, kl_terms, student_log_probs, teacher_log_probs


def reverse_kl(student_logits_NV: Tensor, teacher: Teacher) -> Tensor:
    """Return KL(p || t) per position."""
    log_p_NV = student_log_probs(student_logits_NV)
    return kl_terms(log_p_NV, teacher_log_probs(teacher, log_p_NV)).sum(-1)


def forward_kl(student_logits_NV: Tensor, teacher: Teacher) -> Tensor:
    """Return KL(t || p) per position."""
    log_p_NV = student_log_probs(student_logits_NV)
    return kl_terms(teacher_log_probs(teacher, log_p_NV), log_p_NV).sum(-1)


def linear_kl(student_logits_NV: Tensor, teacher: Teacher, *, beta: float = 0.5) -> Tensor:
    """Return `beta * KL(p || t) + (1 - beta) * KL(t || p)` per position."""
    log_p_NV = student_log_probs(student_logits_NV)
    log_t_NV = teacher_log_probs(teacher, log_p_NV)
    return (beta * kl_terms(log_p_NV, log_t_NV) + (1.0 - beta) * kl_terms(log_t_NV, log_p_NV)).sum(-1)


def jsd(student_logits_NV: Tensor, teacher: Teacher, *, beta: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Return `beta * KL(t || m) + (1 - beta) * KL(p || m)` with `m = beta * t + (1 - beta) * p`.

    The generalised divergence of GKD (arXiv 2306.13649). Beta 0 is KL(t || p) and beta 1 is KL(p || t), although
    the value tends to 0 at both ends: beta is not for sweeping. Both logits are divided by the temperature; the
    value is not scaled back.
    """
    log_p_NV = student_log_probs(student_logits_NV, temperature=temperature)
    log_t_NV = teacher_log_probs(teacher, log_p_NV, temperature=temperature)
    if beta == 0.0:
        return kl_terms(log_t_NV, log_p_NV).sum(-1)
    if beta == 1.0:
        return kl_terms(log_p_NV, log_t_NV).sum(-1)
    log_m_NV = torch.logaddexp(log_t_NV + math.log(beta), log_p_NV + math.log1p(-beta))
    return (beta * kl_terms(log_t_NV, log_m_NV) + (1.0 - beta) * kl_terms(log_p_NV, log_m_NV)).sum(-1)
