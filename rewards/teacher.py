"""What a teacher hands to a divergence, all its logits or its top K, and how both sides become log-probs.

Shapes: N positions, V vocabulary, K support. Student `p`, teacher `t`. Log-softmax runs in float32, or float64 if
the logits come so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from rewards.log_probs import at_least_float32


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """The teacher's logits over the vocabulary that it shares with the student; no gradient."""

    logits_NV: Tensor

    def at(self, positions: Tensor) -> TeacherLogits:
        """Return the positions that an index or a mask over N selects."""
        return TeacherLogits(self.logits_NV[positions])


@dataclass(frozen=True, eq=False)
class TeacherTopK:
    """The teacher's top K tokens per position; log-probs under its full softmax at temperature 1.

    With a support that the student chooses, they are the K tokens that the teacher was asked for.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor

    def at(self, positions: Tensor) -> TeacherTopK:
        """Return the positions that an index or a mask over N selects."""
        return TeacherTopK(self.ids_NK[positions], self.log_probs_NK[positions])


Teacher = TeacherLogits | TeacherTopK


def student_log_probs(student_logits_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log p with gradient."""
    return (at_least_float32(student_logits_NV) / temperature).log_softmax(-1)


def teacher_log_probs(teacher: Teacher, like_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log t without gradient, in the dtype of `like_NV`, whose vocabulary it must share."""
    if not isinstance(teacher, TeacherLogits):
        raise ValueError(f"this divergence needs all of a teacher's logits, got {type(teacher).__name__}")
    if teacher.logits_NV.shape != like_NV.shape:
        raise ValueError(
            "teacher and student logits must be cut to one vocabulary, got shapes "
            f"{tuple(teacher.logits_NV.shape)} and {tuple(like_NV.shape)}"
        )
    return (teacher.logits_NV.detach().to(like_NV.dtype) / temperature).log_softmax(-1)


def kl_terms(log_left_NV: Tensor, log_right_NV: Tensor) -> Tensor:
    """Return `left * (log left - log right)` per token, and 0 with gradient 0 where left is 0."""
    is_absent_NV = log_left_NV == -math.inf
    left_NV = log_left_NV.masked_fill(is_absent_NV, 0.0)
    right_NV = log_right_NV.masked_fill(is_absent_NV, 0.0)
    return (left_NV.exp() * (left_NV - right_NV)).masked_fill(is_absent_NV, 0.0)


def entropy(log_p_NV: Tensor) -> Tensor:
    """Return the entropy of each position in nats, from log-probs that sum to 1."""
    return -kl_terms(log_p_NV, log_p_NV.new_zeros(()).expand_as(log_p_NV)).sum(-1)


def teacher_entropy(teacher: Teacher) -> Tensor:
    """Return entropy_N of the teacher, or of its K tokens renormalised if only those are known."""
    if isinstance(teacher, TeacherLogits):
        return entropy(at_least_float32(teacher.logits_NV.detach()).log_softmax(-1))
    return entropy(at_least_float32(teacher.log_probs_NK.detach()).log_softmax(-1))
