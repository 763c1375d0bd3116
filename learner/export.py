"""Weights -> a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` and vLLM load."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from learner.generation import exported_generation_config
from learner.publisher import Gather
from settings.run import RolloutConfig
from transport.stop_tokens import StopTokens


def export_student(
    causal_lm: Any,
    path: str,
    *,
    gathered: Gather,
    is_first_rank: bool,
    model_path: str,
    stops: StopTokens,
    rollout: RolloutConfig,
    trust_remote_code: bool = False,
) -> None:
    """Write model, generation settings and tokenizer to `path`, in the dtype of the model.

    `model_path` is the student before training: its tokenizer and chat template are kept.

    Every rank must call it; parameters are gathered one by one into the first rank's CPU memory.
    """
    weights = _full_weights(causal_lm, gathered=gathered, is_first_rank=is_first_rank)
    if not is_first_rank:
        return
    causal_lm.save_pretrained(path, state_dict=weights)
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(path)
    generation = exported_generation_config(
        causal_lm.generation_config, stops=stops, rollout=rollout, pad_token_id=tokenizer.pad_token_id
    )
    generation.save_pretrained(path)


def _full_weights(causal_lm: Any, *, gathered: Gather, is_first_rank: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, parameter in causal_lm.named_parameters():
        with gathered([parameter]), torch.no_grad():
            if is_first_rank:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights
