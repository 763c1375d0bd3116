"""Top-k and top-p on CPU engines: vLLM sorts the whole vocabulary for every token; the k largest logits are enough.

The set of tokens that can be drawn is vLLM's (but for ties at the k-th place), and so is the token drawn with a seed:
all other logits become -inf before vLLM draws.

Shapes: R requests of a batch, V vocabulary, K the largest k among them.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

SETTING = "poweropd_truncation"
"""Key of `SamplingParams.extra_args` that carries (top_k, top_p) of a request."""


class Truncation(LogitsProcessor):
    """Keeps the logits of each request's nucleus within its top k. vLLM calls it after the temperature."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._limits: dict[int, tuple[int, float]] = {}  # of the requests that have some, by row

    def is_argmax_invariant(self) -> bool:
        """The likeliest token is always kept."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests to their rows."""
        process_dict_updates(self._limits, batch_update, lambda params, _, __: limits_of(params))

    def apply(self, logits: Tensor) -> Tensor:
        """Limit `logits` [R, V] in place."""
        for limits in set(self._limits.values()):
            rows = [row for row, of_row in self._limits.items() if of_row == limits]
            if len(rows) == len(logits):
                truncate_(logits, *limits)
            else:
                logits[rows] = truncate_(logits[rows], *limits)
        return logits


def limits_of(params: SamplingParams) -> tuple[int, float] | None:
    """(top_k, top_p) of a request that this processor truncates."""
    extra: dict[str, Any] = params.extra_args or {}
    return extra.get(SETTING)


def truncate_(logits_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to -inf what is not among the `top_k` largest, or not in the nucleus of `top_p` among those; in place.

    The nucleus is the likeliest tokens up to and with the one whose probability, added up, reaches `top_p`.
    """
    values_RK, ids_RK = logits_RV.topk(min(top_k, logits_RV.shape[-1]), dim=-1)
    if top_p < 1:
        p_RK = values_RK.softmax(dim=-1)
        before_RK = p_RK.cumsum(dim=-1) - p_RK
        values_RK = values_RK.masked_fill(before_RK >= top_p, float("-inf"))
    return logits_RV.fill_(float("-inf")).scatter_(1, ids_RK, values_RK)
