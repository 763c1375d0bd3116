"""Losses over k tokens per position whose student side is the full softmax.

Shapes: N positions, V vocabulary, S slots of the support. Student `p`, teacher `t`.
"""

from __future__ import annotations

from torch import Tensor

from rewards.distributions import kl_terms, student_log_probs
from rewards.support import Support, choose_support
from rewards.teacher import Teacher


def top_k_forward_kl(student_logits_NV: Tensor, teacher: Teacher, *, k: int = 16) -> Tensor:
    """Return the KL from the teacher, renormalised over its top k, to the student's full distribution."""
    log_p_NV = student_log_probs(student_logits_NV)
    chosen = choose_support(log_p_NV, teacher, k=k)
    return kl_terms(chosen.log_t_NS.log_softmax(-1), chosen.log_p_NS).sum(-1)


def student_top_k(student_logits_NV: Tensor, teacher: Teacher, *, k: int = 16) -> Tensor:
    """Return `-sum of advantage * log p` over the student's top k per position (Rethinking OPD, arXiv 2604.13016).

    The advantage is detached, so that this is the policy gradient over k tokens at once.
    """
    log_p_NV = student_log_probs(student_logits_NV)
    chosen = choose_support(log_p_NV, teacher, k=k, support="student")
    return -(student_top_k_advantage(chosen) * chosen.log_p_NS).sum(-1)


def student_top_k_advantage(chosen: Support) -> Tensor:
    """Return `(log t - log p)` of each token, weighted by the student renormalised over the support; detached."""
    log_p_NS = chosen.log_p_NS.detach()
    return log_p_NS.softmax(-1) * (chosen.log_t_NS - log_p_NS)
