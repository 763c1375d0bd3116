"""The log-ratio of sampled tokens, and a top-k forward KL where a gate is open: EOPD and AOPD.

    EOPD (arXiv 2603.07079)   the log-ratio everywhere, and the forward KL where the teacher is uncertain
    AOPD (arXiv 2605.06387)   the log-ratio where the teacher likes the token better, the forward KL elsewhere

The loss of a token is that of the reward plus the value of the divergence of the same name.

Shapes: B sequences, T tokens, N positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_ratio import log_ratio
from rewards.power import power_reward
from rewards.support import top_k_forward_kl
from rewards.teacher import Teacher, student_log_probs, teacher_entropy


def eopd_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    alpha: float = 1.0,
    tau: float = 0.8,
    k: int = 16,
) -> Tensor:
    """Return the log-ratio: detached, 0 outside the mask. The parameters are those of the direct part."""
    return log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT)


def eopd_divergence(
    student_logits_NV: Tensor,
    teacher: Teacher,
    *,
    alpha: float = 1.0,
    tau: float = 0.8,
    k: int = 16,
    teacher_entropy_N: Tensor | None = None,
) -> Tensor:
    """Return alpha times the top-k forward KL where the teacher's entropy is above tau nats, 0 elsewhere.

    The entropy is exact for `TeacherLogits`. For `TeacherTopK` it is `teacher_entropy_N`, or else that of the
    teacher's tokens renormalised.
    """
    entropy_N = teacher_entropy(teacher) if teacher_entropy_N is None else teacher_entropy_N
    value_N = alpha * top_k_forward_kl(student_logits_NV, teacher, k=k)
    return torch.where(entropy_N > tau, value_N, 0.0)


def aopd_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    tau: float = 0.0,
    k: int = 16,
) -> Tensor:
    """Return the log-ratio outside the gate, 0 inside: detached. `k` is that of the direct part."""
    reward_BT = log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT)
    gate_BT = aopd_gate(teacher_logp_BT, student_logp_BT, response_mask_BT, tau=tau)
    return torch.where(gate_BT, 0.0, reward_BT)


def aopd_divergence(
    student_logits_NV: Tensor,
    teacher: Teacher,
    *,
    sampled_ids_N: Tensor,
    sampled_teacher_logp_N: Tensor,
    tau: float = 0.0,
    k: int = 16,
) -> Tensor:
    """Return the top-k forward KL inside the gate, 0 outside."""
    log_p_NV = student_log_probs(student_logits_NV.detach())
    student_logp_N = log_p_NV.gather(-1, sampled_ids_N.long().unsqueeze(-1)).squeeze(-1)
    all_N = torch.ones_like(student_logp_N, dtype=torch.bool)
    gate_N = aopd_gate(sampled_teacher_logp_N, student_logp_N, all_N, tau=tau)
    return torch.where(gate_N, top_k_forward_kl(student_logits_NV, teacher, k=k), 0.0)


def aopd_gate(
    teacher_logp_BT: Tensor, student_logp_BT: Tensor, response_mask_BT: Tensor, *, tau: float = 0.0
) -> Tensor:
    """Return True where a token gets the forward KL: `p_teacher - p_student <= tau`."""
    gap_BT = power_reward(teacher_logp_BT, student_logp_BT, response_mask_BT, alpha=1.0)
    return response_mask_BT.bool() & (gap_BT <= tau)
