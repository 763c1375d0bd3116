"""EOPD: the log-ratio everywhere, and a forward KL where the teacher is uncertain (arXiv 2603.07079).

The loss of a token is that of the reward plus the value of the divergence.

Shapes: B sequences, T tokens, N positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.distributions import teacher_entropy
from rewards.log_ratio import log_ratio
from rewards.support import top_k_forward_kl
from rewards.teacher import Teacher


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
