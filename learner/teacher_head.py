"""The frozen output head of the teacher: hidden states -> logits and log-probs, a chunk of positions at a time.

A teacher worker that serves whole distributions sends the input of its head, H values per position in place of V.
The learner keeps the head alone and repeats its one matrix product, in the teacher's precision.

Shapes: T response tokens, C positions of one chunk, H the teacher's hidden size, V the shared vocabulary.
"""

import json
from dataclasses import replace
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from learner.collate import PackedBatch
from learner.log_probs import HeadLimits, sampled_log_probs

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


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
    ) -> "TeacherHead":
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
        """Return the batch with the teacher's log-probs of its targets, over the shared vocabulary."""
        logp_T, _ = sampled_log_probs(
            batch.teacher_hidden_TH,
            self.weight_VH,
            self.bias_V,
            batch.target_ids_T,
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
