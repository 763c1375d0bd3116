"""A divergence of student and teacher on one micro-batch, as a function of the student's logits at some positions.

Shapes: T response tokens of a micro-batch, C positions of one chunk, V the student's vocabulary, K the teacher's
likeliest tokens.
"""

from collections.abc import Callable, Mapping
from math import inf

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.teacher_head import TeacherHead
from rewards import Teacher, TeacherLogits, TeacherTopK


class BatchTeacher:
    """The teacher's side of a micro-batch, for any of its positions."""

    def __init__(self, batch: PackedBatch, teacher_head: TeacherHead | None) -> None:
        self._batch = batch
        self._head = teacher_head

    def at(self, positions_C: Tensor, *, vocab_size: int) -> Teacher:
        """Return all logits where there is a head, and the likeliest tokens the student knows otherwise."""
        if self._head is not None:
            return TeacherLogits(self._head.logits(self._batch.teacher_hidden_TH[positions_C]))
        ids_CK = self._batch.teacher_topk_ids_TK[positions_C]
        return known_top_k(ids_CK, self._batch.teacher_topk_logp_TK[positions_C], vocab_size=vocab_size)


class BatchDivergence:
    """Called with logits_CV of any positions_C of its micro-batch; returns value_C with gradient."""

    def __init__(
        self,
        divergence: Callable[..., Tensor],
        batch: PackedBatch,
        *,
        teacher_head: TeacherHead | None,
        per_position: Mapping[str, Tensor],
    ) -> None:
        """`per_position` are further inputs of the divergence by name, with one value per response token."""
        self._divergence = divergence
        self._teacher = BatchTeacher(batch, teacher_head)
        self._per_position = per_position

    def __call__(self, logits_CV: Tensor, positions_C: Tensor) -> Tensor:
        teacher = self._teacher.at(positions_C, vocab_size=logits_CV.shape[-1])
        extras = {name: values[positions_C] for name, values in self._per_position.items()}
        return self._divergence(shared(logits_CV, teacher), teacher, **extras)


def shared(logits_CV: Tensor, teacher: Teacher) -> Tensor:
    """Return the student's logits of the ids that the teacher has a logit for too."""
    return logits_CV[:, : teacher.logits_NV.shape[-1]] if isinstance(teacher, TeacherLogits) else logits_CV


def known_top_k(ids_CK: Tensor, log_probs_CK: Tensor, *, vocab_size: int) -> TeacherTopK:
    """Return the teacher's tokens without those that the student's head has no row for.

    Heads are padded to different sizes. An unknown id becomes the likeliest known one again, with probability 0.
    """
    is_known_CK = ids_CK < vocab_size
    log_probs_CK = log_probs_CK.masked_fill(~is_known_CK, -inf)
    likeliest_C1 = ids_CK.gather(1, log_probs_CK.argmax(dim=1, keepdim=True)).clamp(max=vocab_size - 1)
    return TeacherTopK(torch.where(is_known_CK, ids_CK, likeliest_C1), log_probs_CK)
