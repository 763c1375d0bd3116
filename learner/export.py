"""Weights -> a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` and vLLM load."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from learner.publisher import Gather


def export_student(
    causal_lm: Any,
    path: str,
    *,
    gathered: Gather,
    is_first_rank: bool,
    model_path: str,
    trust_remote_code: bool = False,
) -> None:
    """Write model, generation settings and tokenizer to `path`, in the dtype of training.

    Every rank must call it; parameters are gathered one by one into the first rank's CPU memory.
    """
    weights = _full_weights(causal_lm, gathered=gathered, is_first_rank=is_first_rank)
    if not is_first_rank:
        return
    causal_lm.save_pretrained(path, state_dict=weights)
    AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code).save_pretrained(path)


def _full_weights(causal_lm: Any, *, gathered: Gather, is_first_rank: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, parameter in causal_lm.named_parameters():
        with gathered([parameter]), torch.no_grad():
            if is_first_rank:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights
