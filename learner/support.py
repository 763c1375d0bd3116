"""Whether the learner can train a model: tried on a tiny random one of its configuration before devices are taken.

    config.json -> the same with few narrow layers -> random weights -> head, packing, and what is published

What is tried is what every rank checks of the real model once it is loaded (`learner/student.py`), minutes later.
"""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.log_probs import HeadLimits
from learner.packed_attention import use_packed_attention
from learner.stored_tensors import parts_of
from learner.student import StudentModel
from settings.exit_codes import first_line

NUM_TOKENS = 64
NUM_ROWS = 128
LIMIT = 1e-3
"""Largest mean difference of log-probs, in float32."""
WIDTH = 64
"""Of feed-forward layers, and the most of what attention is compressed to."""
WINDOW = 16
LOGITS_STD = 10.0
"""Large enough that a cap of the logits shows."""

WIDTHS = ("intermediate_size", "ffn_hidden_size", "n_inner")
MOST = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "hidden_size_per_layer_input"), WIDTH),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), NUM_ROWS),
    "num_nextn_predict_layers": 0,
}
"""Settings that are lowered to these values where they are larger."""


class NotTriedError(Exception):
    """A configuration cannot be made small; the model is checked once it is loaded."""


def check_architecture(
    path: str, field: str, *, attention: str, trust_remote_code: bool = False, is_trained: bool = True
) -> None:
    """ValueError, one line, naming the field if the learner cannot use models of this configuration.

    Of one that is not `is_trained`, only the head is used. NotTriedError if there is no tiny model of it.
    """
    config: Any = None
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        causal_lm, has_attention = _tiny_model(config, attention, trust_remote_code=trust_remote_code)
    except Exception as error:  # custom code, and families whose sizes depend on each other in other ways
        if "for this kind of AutoModel" in str(error) and getattr(config, "auto_map", None) is None:
            raise ValueError(f"{field}: {path} is no causal language model of transformers") from error
        raise NotTriedError(f"{field}: no tiny model of {path} can be made: {first_line(error)}") from error
    try:
        _check(causal_lm, is_trained=is_trained)
    except ValueError as error:
        raise ValueError(f"{field}: {path} is of a family that is not supported: {first_line(error)}") from error
    except Exception as error:
        raise NotTriedError(f"{field}: a tiny model of {path} fails: {first_line(error)}") from error
    if is_trained and not has_attention:
        raise ValueError(
            f"learner.attention must be eager for {type(causal_lm).__name__}, which has no {attention}, got "
            f"{attention}"
        )


def _check(causal_lm: Any, *, is_trained: bool) -> None:
    num_rows = causal_lm.get_input_embeddings().weight.shape[0]
    student = StudentModel(causal_lm, HeadLimits(num_rows))
    ids_N = torch.randint(3, num_rows, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.check_head(ids_N, limit=LIMIT)
        if is_trained:
            use_packed_attention(causal_lm)
            student.check_packing(ids_N, limit=LIMIT)
            parts_of(causal_lm)


def tiny(config: Any) -> Any:
    """A copy of a configuration with as few and as narrow layers as show everything that the family does."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    config = with_layers(config, max(2, 1 + max((kinds.index(kind) for kind in set(kinds)), default=0)))
    text = config.get_text_config()
    num_heads, num_shared = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    text.num_attention_heads, text.hidden_size = 2, 2 * head_dim
    if num_shared is not None:
        text.num_key_value_heads = 2 if num_shared == num_heads else 1
    for name, value in list(vars(text).items()):
        if isinstance(value, int) and name.endswith(WIDTHS):
            setattr(text, name, WIDTH)
        elif isinstance(value, int) and not isinstance(value, bool) and value > MOST.get(name, value):
            setattr(text, name, MOST[name])
        elif name.endswith("_token_id"):
            setattr(text, name, None)
    vision = getattr(config, "vision_config", None)
    for name in ("num_hidden_layers", "depth"):
        if hasattr(vision, name):
            setattr(vision, name, 1)
    return config


def with_layers(config: Any, num_layers: int) -> Any:
    """A copy of a configuration with fewer decoder layers: the first ones."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    num_before = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == num_before:
            setattr(text, name, value[:num_layers])
    text.num_hidden_layers = min(num_layers, num_before)
    return config


def _tiny_model(config: Any, attention: str, *, trust_remote_code: bool) -> tuple[Any, bool]:
    """A random tiny model in float32, and whether it has that attention; else it has its eager one."""
    given: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    small, has_attention = tiny(config), True
    causal_lm = AutoModelForCausalLM.from_config(copy.deepcopy(small), attn_implementation="eager", **given)
    if attention == "sdpa":
        try:
            causal_lm = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa", **given)
        except ValueError:
            has_attention = False
    _randomise(causal_lm)
    return causal_lm.eval(), has_attention


@torch.no_grad()
def _randomise(causal_lm: Any) -> None:
    """Weights of which every product has about the size of its input, and a head with large logits."""
    generator = torch.Generator().manual_seed(0)
    head = causal_lm.get_output_embeddings().weight
    for name, parameter in causal_lm.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter is head:
            parameter.copy_(noise * LOGITS_STD / parameter.shape[-1] ** 0.5)
        elif parameter.ndim < 2:
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.1 * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
