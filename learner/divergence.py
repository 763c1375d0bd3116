"""A divergence of student and teacher on one micro-batch, as a function of the student's logits at some positions.

The teacher's side is its top K tokens, or all its logits: then the worker sends the input of its output head, H
values per position in place of V. The learner keeps the frozen head alone and repeats its one matrix product, in
the teacher's precision.

Shapes: T response tokens of a micro-batch, C positions of one chunk, V the student's vocabulary, K the teacher's
top tokens, H its hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from learner.collate import PackedBatch
from learner.log_probs import HeadLimits, sampled_log_probs
from rewards import Teacher, TeacherLogits, TeacherTopK

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


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


class BatchTeacher:
    """The teacher's side of a micro-batch, for any of its positions."""

    def __init__(self, batch: PackedBatch, teacher_head: TeacherHead | None) -> None:
        self._batch = batch
        self._head = teacher_head

    def at(self, positions_C: Tensor, *, vocab_size: int) -> Teacher:
        """Return all logits where there is a head, and else the top tokens that the student knows."""
        if self._head is not None:
            return TeacherLogits(self._head.logits(self._batch.teacher_hidden_TH[positions_C]))
        ids_CK = self._batch.teacher_topk_ids_TK[positions_C]
        return known_top_k(ids_CK, self._batch.teacher_topk_logp_TK[positions_C], vocab_size=vocab_size)


def shared(logits_CV: Tensor, teacher: Teacher) -> Tensor:
    """Return the student's logits of the ids that the teacher has a logit for too."""
    return logits_CV[:, : teacher.logits_NV.shape[-1]] if isinstance(teacher, TeacherLogits) else logits_CV


def known_top_k(ids_CK: Tensor, log_probs_CK: Tensor, *, vocab_size: int) -> TeacherTopK:
    """Return the teacher's tokens without those that the student's head has no row for.

    Heads are padded to different sizes. An unknown id becomes the most likely known one again, with probability 0.
    """
    is_known_CK = ids_CK < vocab_size
    log_probs_CK = log_probs_CK.masked_fill(~is_known_CK, -inf)
    best_C1 = ids_CK.gather(1, log_probs_CK.argmax(dim=1, keepdim=True)).clamp(max=vocab_size - 1)
    return TeacherTopK(torch.where(is_known_CK, ids_CK, best_C1), log_probs_CK)


class TeacherHead:
    """Rows of the teacher's head for the ids that student and teacher share; nothing here is trained.

    >>> head = TeacherHead.load("models/teacher", dtype="bfloat16", max_rows=151_936, device=device)
    >>> batch = head.with_log_probs(batch)
    """

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None = None) -> None:
        self.weight_VH = weight_VH
        self.bias_V = bias_V

    @classmethod
    def load(
        cls, model_path: str, *, dtype: str, max_rows: int, device: torch.device, trust_remote_code: bool = False
    ) -> TeacherHead:
        """Read the head, and nothing else, from the teacher's safetensors; rows >= `max_rows` are cut off."""
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        is_tied = config.get_text_config().tie_word_embeddings
        weight_VH = read_tensor(model_path, "embed_tokens.weight" if is_tied else "lm_head.weight")
        if weight_VH is None:
            raise ValueError(f"teacher.model_path: {model_path} holds no output head in safetensors")
        bias_V = None if is_tied else read_tensor(model_path, "lm_head.bias")
        precision = {"dtype": getattr(torch, dtype), "device": device}
        return cls(
            weight_VH[:max_rows].to(**precision), None if bias_V is None else bias_V[:max_rows].to(**precision)
        )

    @property
    def num_rows(self) -> int:
        """Ids that have a logit."""
        return len(self.weight_VH)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Return logits_CV in the teacher's precision."""
        return nn.functional.linear(hidden_CH, self.weight_VH, self.bias_V)

    @torch.no_grad()
    def with_log_probs(self, batch: PackedBatch, *, chunk_tokens: int | Literal["auto"]) -> PackedBatch:
        """Return the batch with the teacher's log-probs of what it is asked for, over the shared vocabulary."""
        logp_T, _ = sampled_log_probs(
            batch.teacher_hidden_TH,
            self.weight_VH,
            self.bias_V,
            batch.teacher_target_ids_T,
            HeadLimits(self.num_rows, chunk_tokens=chunk_tokens),
        )
        return replace(batch, teacher_logp_T=logp_T)


def read_tensor(model_path: str, ending: str) -> Tensor | None:
    """Return the one tensor whose name ends so; None if there is none. `model_path` may be a hub name."""
    index = cached_file(model_path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        with open(index, encoding="utf-8") as file:
            files: dict[str, str] = json.load(file)["weight_map"]
        name = next((name for name in files if name.endswith(ending)), None)
        path = None if name is None else cached_file(model_path, files[name])
    else:
        path = cached_file(model_path, WHOLE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        name = next((name for name in file.keys() if name.endswith(ending)), None)  # noqa: SIM118
        return None if name is None else file.get_tensor(name)
