"""A divergence of student and teacher on one micro-batch, as a function of the student's logits at some positions.

The teacher's side is its top K tokens, or all its logits: then the worker sends the input of its output head, H
values per position in place of V. The learner keeps the frozen head alone and repeats its one matrix product, in
the teacher's precision.

Shapes: T response tokens of a micro-batch, C positions of one chunk, V the student's vocabulary, K the teacher's
top tokens, H its hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils.hub import cached_file

from inputs.tokenizers import INDEX
from learner.collate import PackedBatch
from learner.log_probs import HeadLimits, sampled_log_probs
from learner.support import NotTriedError, with_layers
from rewards import Teacher, TeacherLogits, TeacherTopK

WHOLE = "model.safetensors"


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
        weight_VH, bias_V = read_head(model_path, trust_remote_code=trust_remote_code)
        precision = {"dtype": getattr(torch, dtype), "device": device}
        return cls(
            weight_VH[:max_rows].to(**precision), None if bias_V is None else bias_V[:max_rows].to(**precision)
        )

    def check(
        self, model_path: str, token_ids: Sequence[int], *, limit: float, trust_remote_code: bool = False
    ) -> None:
        """ValueError unless log-probs through this head are those of the teacher's own logits.

        Embeddings, norm and head are those of the folder, as transformers loads them; of the layers there is one,
        since what comes before the head is the same on both sides. NotTriedError if it cannot be loaded so.
        """
        ids_1T = torch.tensor([token_ids])
        given: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            config = with_layers(AutoConfig.from_pretrained(model_path, **given), 1)
            causal_lm: Any = AutoModelForCausalLM.from_pretrained(
                model_path, config=config, dtype=self.weight_VH.dtype, use_safetensors=True, **given
            )
            with torch.no_grad():
                own_TV = causal_lm(input_ids=ids_1T, use_cache=False).logits[0, :, : self.num_rows]
                hidden_TH = causal_lm.get_decoder()(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
        except Exception as error:  # custom code, and families that are nothing with one layer
            raise NotTriedError(f"teacher.model_path: the head of {model_path} is not checked: {error}") from error
        logits_TV = self.logits(hidden_TH.to(self.weight_VH.device)).cpu()
        pairs = (each.float().log_softmax(dim=-1).gather(1, ids_1T[0, :, None]) for each in (own_TV, logits_TV))
        difference = float(torch.sub(*pairs).abs().mean())
        if not difference <= limit:
            raise ValueError(
                f"teacher.model_path: log-probs through the head of {model_path} differ from those of its own "
                f"logits by {difference:.3g} on average, limit {limit:g}"
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


def read_head(model_path: str, *, trust_remote_code: bool = False) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output head that transformers and vLLM use, read from safetensors without the rest.

    A head in the files is used even if the configuration says that it is the embedding. `model_path` may be a hub
    name. ValueError if there is none.
    """
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        causal_lm: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    module = causal_lm.get_output_embeddings()
    head = next(name for name, each in causal_lm.named_modules() if each is module)
    files = _tensor_files(model_path)
    stored = _names_in_model(causal_lm, files)
    own = f"{head}.weight"
    name = stored.get(own) or stored.get(causal_lm.all_tied_weights_keys.get(own, ""))
    if name is None:
        raise ValueError(f"teacher.model_path: {model_path} holds no output head in safetensors ({own})")
    bias = stored.get(f"{head}.bias") if getattr(module, "bias", None) is not None else None
    return _read(model_path, files[name], name), None if bias is None else _read(model_path, files[bias], bias)


def _names_in_model(causal_lm: Any, names: Iterable[str]) -> dict[str, str]:
    """Names of stored tensors by the names that transformers loads them under."""
    conversions = get_model_conversion_mapping(causal_lm)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    known: dict[str, Any] = {
        "base_model_prefix": causal_lm.base_model_prefix,
        "meta_state_dict": causal_lm.state_dict(),
    }
    return {rename_source_key(name, renamings, converters, **known)[0]: name for name in names}


def _tensor_files(model_path: str) -> dict[str, str]:
    """The file of every tensor in a model's safetensors."""
    index = cached_file(model_path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        with open(index, encoding="utf-8") as file:
            return json.load(file)["weight_map"]
    path = cached_file(model_path, WHOLE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    with safe_open(path, "pt") as tensors:
        return dict.fromkeys(tensors.keys(), WHOLE)


def _read(model_path: str, file: str, name: str) -> Tensor:
    path = cached_file(model_path, file)
    assert path is not None, f"{model_path} has no {file}"
    with safe_open(path, "pt") as tensors:
        return tensors.get_tensor(name)
