"""Losses over k tokens per position whose student side is the full softmax, and the choice of these tokens.

Shapes: N positions, V vocabulary, K the support size, S slots: K, or more where sets are joined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.teacher import Teacher, TeacherLogits, TeacherTopK, kl_terms, student_log_probs, teacher_log_probs


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


@dataclass(frozen=True, eq=False)
class Support:
    """Log-probs of student and teacher, under their full softmax, on a set of tokens per position."""

    ids_NS: Tensor
    is_member_NS: Tensor
    """False in a slot that repeats a token of the set."""
    log_p_NS: Tensor
    """Student, with gradient."""
    log_t_NS: Tensor
    """Teacher, without."""


def choose_support(
    log_p_NV: Tensor,
    teacher: Teacher,
    *,
    k: int,
    support: str = "teacher",
    sampled_ids_N: Tensor | None = None,
    sampled_teacher_logp_N: Tensor | None = None,
) -> Support:
    """Return the teacher's top k, the same and the sampled token, the student's top k, or the union of both.

    A `TeacherTopK` serves `student` if its ids are those of the student, and `teacher+sampled` with the
    teacher's log-prob of the sampled token; `union` needs all logits.
    """
    if not 1 <= k <= log_p_NV.shape[-1]:
        raise ValueError(f"k must be >= 1 and <= the vocabulary ({log_p_NV.shape[-1]}), got {k}")
    if isinstance(teacher, TeacherLogits):
        ids_NS, log_t_NS = _from_all_logits(log_p_NV, teacher, k, support, sampled_ids_N)
        if support == "teacher+sampled" and sampled_teacher_logp_N is not None:
            log_t_NS[:, -1] = sampled_teacher_logp_N  # of another id, where the teacher was asked for its own stop
    else:
        ids_NS, log_t_NS = _from_top_k(
            teacher, log_p_NV, k, support, sampled_ids_N=sampled_ids_N, sampled_logp_N=sampled_teacher_logp_N
        )
    return Support(ids_NS, first_of_each(ids_NS), log_p_NV.gather(-1, ids_NS), log_t_NS)


def first_of_each(ids_NS: Tensor) -> Tensor:
    """Return True where an id stands for the first time in its row."""
    in_order_NS, order_NS = ids_NS.sort(dim=-1, stable=True)
    is_first_NS = torch.ones_like(ids_NS, dtype=torch.bool)
    is_first_NS[:, 1:] = in_order_NS[:, 1:] != in_order_NS[:, :-1]
    return torch.zeros_like(is_first_NS).scatter(-1, order_NS, is_first_NS)


def _from_all_logits(
    log_p_NV: Tensor, teacher: TeacherLogits, k: int, support: str, sampled_ids_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_t_NV = teacher_log_probs(teacher, log_p_NV)
    sets_NS = []
    if support != "student":
        sets_NS.append(log_t_NV.topk(k, dim=-1).indices)
    if support in ("student", "union"):
        sets_NS.append(log_p_NV.detach().topk(k, dim=-1).indices)
    if support == "teacher+sampled":
        sets_NS.append(_given("sampled_ids_N", sampled_ids_N).unsqueeze(-1))
    ids_NS = torch.cat(sets_NS, dim=-1)
    return ids_NS, log_t_NV.gather(-1, ids_NS)


def _from_top_k(
    teacher: TeacherTopK,
    log_p_NV: Tensor,
    k: int,
    support: str,
    *,
    sampled_ids_N: Tensor | None,
    sampled_logp_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    ids_NK, log_t_NK = teacher.ids_NK.long(), teacher.log_probs_NK.detach().to(log_p_NV.dtype)
    if ids_NK.shape[-1] < k:
        raise ValueError(f"k must be <= the {ids_NK.shape[-1]} tokens that the teacher returned, got {k}")
    if support == "union":
        raise ValueError("support union needs all of a teacher's logits, got TeacherTopK")
    if support == "student":
        return ids_NK[:, :k], log_t_NK[:, :k]
    log_t_NK, order_NK = log_t_NK.topk(k, dim=-1)
    ids_NK = ids_NK.gather(-1, order_NK)
    if support == "teacher":
        return ids_NK, log_t_NK
    sampled_ids_N1 = _given("sampled_ids_N", sampled_ids_N).unsqueeze(-1)
    sampled_logp_N1 = _given("sampled_teacher_logp_N", sampled_logp_N).detach().to(log_t_NK.dtype).unsqueeze(-1)
    return torch.cat([ids_NK, sampled_ids_N1], dim=-1), torch.cat([log_t_NK, sampled_logp_N1], dim=-1)


def _given(name: str, values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError(f"support teacher+sampled needs {name}")
    return values
