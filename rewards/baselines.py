"""Baselines: the reward that the student expects at a position, in closed form.

`reward - baseline` has the same expected gradient as the reward, as long as tokens are sampled from the full
softmax at temperature 1. Its variance is another one, and not always lower: the power reward of unlikely tokens is
near 0 as it is. Every baseline is detached.

Shapes: N positions, V vocabulary, K support. Student `p`, teacher `t`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewards.kl import reverse_kl
from rewards.lsm import lsm
from rewards.power import power_reward
from rewards.teacher import Teacher, student_log_probs, teacher_log_probs
from rewards.veto import veto_reverse


@torch.no_grad()
def power_baseline(
    student_logits_NV: Tensor, teacher: Teacher, *, alpha: float = 5.0, rescale: str = "none"
) -> Tensor:
    """Return `sum of p * (t**alpha - p**alpha)` (derived)."""
    log_p_NV = student_log_probs(student_logits_NV)
    log_t_NV = teacher_log_probs(teacher, log_p_NV)
    all_NV = torch.ones_like(log_p_NV, dtype=torch.bool)
    reward_NV = power_reward(log_t_NV, log_p_NV, all_NV, alpha=alpha, rescale=rescale)
    return (log_p_NV.exp() * reward_NV).sum(-1)


@torch.no_grad()
def log_ratio_baseline(student_logits_NV: Tensor, teacher: Teacher, *, k: int | None = None) -> Tensor:
    """Return -KL(p || t), so that the log-ratio minus it is the advantage of vOPD (arXiv 2605.07865).

    With k, both sides are renormalised over the student's top k: cheaper, and no longer exact. A `TeacherTopK`
    then holds the teacher's log-probs of these tokens.
    """
    if k is None:
        return -reverse_kl(student_logits_NV, teacher)
    return -lsm(student_logits_NV, teacher, k=k, support="student")


@torch.no_grad()
def veto_reverse_baseline(student_logits_NV: Tensor, teacher: Teacher, **parameters: Any) -> Tensor:
    """Return `sum of p * (log t - (1 - beta) * log p)` (derived), with the parameters of `veto_reverse`."""
    log_p_NV = student_log_probs(student_logits_NV)
    log_t_NV = teacher_log_probs(teacher, log_p_NV)
    all_NV = torch.ones_like(log_p_NV, dtype=torch.bool)
    reward_NV = veto_reverse(log_t_NV, log_p_NV, all_NV, **parameters)
    return (log_p_NV.exp() * reward_NV).sum(-1)
