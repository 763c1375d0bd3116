"""Logits processors of our engines: reproducible sampling on CPUs, and no ids beyond the tokenizer's vocabulary.

On a CPU, vLLM sorts the whole vocabulary for each token to apply top-k and top-p; the largest logits suffice. Its
seeded generators also depend on the number of calls, and one that is called for a partial prompt cannot be rewound
on a CPU, which ends the engine. Here the random number is a function of (seed, position): a seed samples the same
tokens from the same distributions, whatever else the engine does.

Shapes: R requests of a batch, V vocabulary, K top-k tokens.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

SAMPLING_KEY = "poweropd_sampling"
"""Key of `SamplingParams.extra_args` that carries (seed, top_k, top_p) of a request; top_k <= 0 is no limit."""

NUCLEUS_CANDIDATES = 1024
"""Top tokens searched for a nucleus without top-k, before the whole vocabulary is sorted."""


@dataclass(frozen=True)
class _Request:
    seed: int
    limits: tuple[int, float]
    made: list[int]
    """Its tokens so far; vLLM appends to it."""


class SeededSampler(LogitsProcessor):
    """Samples a token per request and masks all others. vLLM applies it after the temperature."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, _Request] = {}  # by row

    def is_argmax_invariant(self) -> bool:
        """Greedy requests are not sampled: vLLM may skip this for them."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests to their rows."""
        process_dict_updates(self._requests, batch_update, lambda params, _, made: _request_of(params, made))

    def apply(self, logits: Tensor) -> Tensor:
        """Set the logits [R, V] of all but the sampled tokens to -inf, in place."""
        rows_of_limits: dict[tuple[int, float], list[int]] = defaultdict(list)
        for row, request in self._requests.items():
            rows_of_limits[request.limits].append(row)
        for (top_k, top_p), rows in rows_of_limits.items():
            asked = [self._requests[row] for row in rows]
            numbers_R = uniform([request.seed for request in asked], [len(request.made) for request in asked])
            index_R = torch.tensor(rows)
            ids_R = sample(logits[index_R], top_k, top_p, torch.from_numpy(numbers_R))
            logits[index_R] = float("-inf")
            logits[index_R, ids_R] = 0.0
        return logits


def _request_of(params: SamplingParams, made: list[int]) -> _Request | None:
    extra: dict[str, Any] = params.extra_args or {}
    if SAMPLING_KEY not in extra:
        return None
    seed, top_k, top_p = extra[SAMPLING_KEY]
    return _Request(seed, (top_k, top_p), made)


def sample(logits_RV: Tensor, top_k: int, top_p: float, numbers_R: Tensor) -> Tensor:
    """Return ids_R sampled from `softmax(logits)` after top-k, then top-p, by inverse CDF of numbers in [0, 1).

    The nucleus is the smallest set of top tokens whose cumulative probability reaches `top_p`.
    """
    if top_k <= 0 and top_p < 1:
        top_k = _size_of_nucleus(logits_RV, top_p)
    ids_RK: Tensor | None = None
    if 0 < top_k < logits_RV.shape[-1] or top_p < 1:
        logits_RV, ids_RK = logits_RV.topk(min(top_k, logits_RV.shape[-1]), dim=-1)
    cdf_RK = logits_RV.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # A token is in the nucleus if those before it do not reach top_p; the first always is.
    last_R = (cdf_RK[:, :-1] < top_p * cdf_RK[:, -1:]).sum(dim=-1)
    total_R = cdf_RK.gather(1, last_R[:, None])[:, 0]
    place_R = torch.searchsorted(cdf_RK, (numbers_R * total_R)[:, None], right=True)[:, 0]
    place_R = torch.minimum(place_R, last_R)
    return place_R if ids_RK is None else ids_RK.gather(1, place_R[:, None])[:, 0]


def _size_of_nucleus(logits_RV: Tensor, top_p: float) -> int:
    """Number of top tokens that contains the nucleus of every request."""
    if logits_RV.shape[-1] <= NUCLEUS_CANDIDATES:
        return logits_RV.shape[-1]
    top_RK = logits_RV.topk(NUCLEUS_CANDIDATES, dim=-1, sorted=False).values
    held_R = (top_RK.logsumexp(dim=-1) - logits_RV.logsumexp(dim=-1)).exp()
    return NUCLEUS_CANDIDATES if bool((held_R > top_p).all()) else logits_RV.shape[-1]


def uniform(seeds: list[int], positions: list[int]) -> np.ndarray:
    """Return an independent float64 in [0, 1) for each (seed, position), by splitmix64."""
    with np.errstate(over="ignore"):
        mixed = _mix(np.asarray(seeds, dtype=np.uint64)) + np.asarray(positions, dtype=np.uint64)
        return (_mix(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: np.ndarray) -> np.ndarray:
    """One step of splitmix64 (Steele, Lea and Flood 2014) from each of the uint64 values."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


VOCAB_SIZE_KEY = "poweropd_vocab_size"
"""Key of vLLM's `additional_config` that carries the number of ids the tokenizer knows."""


class VocabularyLimit(LogitsProcessor):
    """Sets the logits of ids >= the tokenizer's size to -inf. Raw log-probs are taken before it."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        additional = vllm_config.additional_config
        self._vocab_size = int(additional[VOCAB_SIZE_KEY]) if isinstance(additional, dict) else None

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Nothing per request."""

    def is_argmax_invariant(self) -> bool:
        """Greedy sampling could pick a padded row, so it must see the limit too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Stateless."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Limit `logits` [num_requests, V] in place."""
        if self._vocab_size is not None and self._vocab_size < logits.shape[-1]:
            logits[:, self._vocab_size :] = float("-inf")
        return logits
