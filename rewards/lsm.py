"""Local support matching: a KL over the teacher's top k tokens (Revisiting OPD, arXiv 2603.25562).

Shapes: N positions, V vocabulary, S slots of the support.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewards.support import Support, choose_support
from rewards.teacher import Teacher, TeacherLogits, kl_terms, student_log_probs, teacher_log_probs

LOG_SMALLEST_TAIL = math.log(1e-7)
"""A tail has at least this mass, so that it keeps a logarithm (as in TRL)."""


def lsm(
    student_logits_NV: Tensor,
    teacher: Teacher,
    *,
    k: int = 32,
    direction: str = "reverse",
    normalise: bool = True,
    tail: str = "none",
    support: str = "teacher",
    sampled_ids_N: Tensor | None = None,
    sampled_teacher_logp_N: Tensor | None = None,
) -> Tensor:
    """Return a KL over the support per position: KL(p || t) (reverse) or KL(t || p) (forward).

    Normalised, both sides are distributions over the support, and other tokens receive no gradient (Eq. 6-8).
    Not normalised, the terms of the full KL are summed over the support: the value may be negative and the
    gradient leaks to other tokens. With `tail="bucket"` the rest of the vocabulary counts as one more token; both
    sides sum to 1 then, and `normalise` has no effect. Either is the full KL at k = V.
    """
    log_p_NV = student_log_probs(student_logits_NV)
    chosen = choose_support(
        log_p_NV,
        teacher,
        k=k,
        support=support,
        sampled_ids_N=sampled_ids_N,
        sampled_teacher_logp_N=sampled_teacher_logp_N,
    )
    log_p_NS, log_t_NS = members_only(chosen)
    if tail == "bucket":
        log_p_tail_N1 = log_mass_outside(log_p_NV, chosen.ids_NS)
        if isinstance(teacher, TeacherLogits):
            log_t_tail_N1 = log_mass_outside(teacher_log_probs(teacher, log_p_NV), chosen.ids_NS)
        else:
            log_t_tail_N1 = log_remaining_mass(log_t_NS)
        log_p_NS = torch.cat([log_p_NS, log_p_tail_N1], dim=-1)
        log_t_NS = torch.cat([log_t_NS, log_t_tail_N1], dim=-1)
    elif normalise:
        log_p_NS, log_t_NS = log_p_NS.log_softmax(-1), log_t_NS.log_softmax(-1)
    left_NS, right_NS = (log_p_NS, log_t_NS) if direction == "reverse" else (log_t_NS, log_p_NS)
    return kl_terms(left_NS, right_NS).sum(-1)


def members_only(chosen: Support) -> tuple[Tensor, Tensor]:
    """Return the log-probs of student and teacher, with probability 0 on both sides in repeated slots."""
    is_repeated_NS = ~chosen.is_member_NS
    return (
        chosen.log_p_NS.masked_fill(is_repeated_NS, -math.inf),
        chosen.log_t_NS.masked_fill(is_repeated_NS, -math.inf),
    )


def log_mass_outside(log_p_NV: Tensor, ids_NS: Tensor) -> Tensor:
    """Return the log of the mass that the other tokens of the vocabulary have, as one slot."""
    nothing = torch.finfo(log_p_NV.dtype).min / 4
    return log_p_NV.scatter(-1, ids_NS, nothing).logsumexp(-1, keepdim=True).clamp(min=LOG_SMALLEST_TAIL)


def log_remaining_mass(log_t_NS: Tensor) -> Tensor:
    """Return the log of what the support leaves of 1, as one slot: less exact, where nothing else is known."""
    log_mass_N1 = log_t_NS.logsumexp(-1, keepdim=True).clamp(max=-torch.finfo(log_t_NS.dtype).tiny)
    return torch.log(-torch.expm1(log_mass_N1)).clamp(min=LOG_SMALLEST_TAIL)
