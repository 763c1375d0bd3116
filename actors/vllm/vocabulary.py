"""Keeps the engine from sampling embedding rows that the tokenizer does not know (padded vocabularies)."""

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

SETTING = "poweropd_vocab_size"
"""Key of vLLM's `additional_config` that carries the number of known ids."""


class VocabularyLimit(LogitsProcessor):
    """Sets the logits of ids >= the tokenizer's size to -inf. Raw log-probs are taken before it."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        additional = vllm_config.additional_config
        self._vocab_size = int(additional[SETTING]) if isinstance(additional, dict) else None

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
