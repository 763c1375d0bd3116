"""Tiny random models of the families that `docs/models.md` speaks of: their configurations, and weights that tell.

A family is a class of transformers. Sizes are the smallest that every kernel takes; weights are drawn so large
that log-probs are far from uniform, and that a forgotten scale, cap or layer shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCAB_SIZE = 64
MAX_MODEL_LEN = 256

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_MODEL_LEN,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 32}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SHARED = {"shared_expert_intermediate_size": 64}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 512,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}
FULL = {"layer_types": ["full_attention"] * 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _of(name: str, *parts: dict[str, Any], **more: Any) -> Callable[[], Any]:
    given = dict(SIZES)
    for part in (*parts, more):
        given |= part
    return lambda: getattr(transformers, name)(**given)


def _gemma3_multimodal() -> Any:
    return transformers.Gemma3Config(
        text_config=SIZES | HEADS | SLIDING, vision_config=VISION | {"image_size": 28, "patch_size": 14}
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": _of("LlamaConfig", tie_word_embeddings=True),
    "Qwen2": _of("Qwen2Config"),
    "Qwen3": _of("Qwen3Config", HEADS),
    "Mistral": _of("MistralConfig", HEADS),
    "SmolLM3": _of("SmolLM3Config"),
    "Phi3": _of("Phi3Config"),
    "OLMo2": _of("Olmo2Config"),
    "GLM-4": _of("Glm4Config", HEADS),
    "Gemma3 (text)": _of("Gemma3TextConfig", HEADS, SLIDING),
    "Gemma3 (multimodal)": _gemma3_multimodal,
    "GPT-NeoX": _of("GPTNeoXConfig", num_key_value_heads=2),
    "Starcoder2": _of("Starcoder2Config"),
    "Exaone4": _of("Exaone4Config", FULL, sliding_window=None),
    "Mixtral": _of("MixtralConfig", HEADS, num_local_experts=4),
    "Qwen2-MoE": _of("Qwen2MoeConfig", EXPERTS, SHARED),
    "Qwen3-MoE": _of("Qwen3MoeConfig", HEADS, EXPERTS),
    "OLMoE": _of("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "PhiMoE": _of("PhimoeConfig", num_local_experts=4, attention_bias=True, lm_head_bias=True),
    "GLM-4-MoE": _of("Glm4MoeConfig", HEADS, ROUTED),
    "DeepSeek-V3": _of("DeepseekV3Config", ROUTED, LATENT, topk_method="noaux_tc"),
    "gpt-oss": _of("GptOssConfig", HEADS, SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "Granite": _of("GraniteConfig", logits_scaling=8.0),
    "GraniteMoE": _of("GraniteMoeConfig", num_local_experts=4, logits_scaling=8.0),
    "Cohere2": _of("Cohere2Config"),
    "Gemma2": _of("Gemma2Config", HEADS),
    "Qwen3-Next": _of("Qwen3NextConfig", EXPERTS, SHARED, LINEAR),
    "Qwen3.5 (text)": _of("Qwen3_5TextConfig", LINEAR),
}
"""A configuration of every family, by its name."""


SPELLED = {"PhiMoE": "PhiMoEForCausalLM"}
"""Classes that folders on the hub, and engines, spell otherwise than transformers does."""


def tiny_model(family: str, *, seed: int = 0) -> Any:
    """A random model of a family in float32."""
    torch.manual_seed(seed)
    causal_lm: Any = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32).eval()
    randomise(causal_lm, seed=seed)
    return causal_lm


@torch.no_grad()
def randomise(causal_lm: Any, *, seed: int = 0) -> None:
    """Draw every parameter and persistent buffer anew: norms around 1, everything else around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in causal_lm.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            tensor.copy_(1 + noise if "norm" in name else noise)


@torch.no_grad()
def perturb(causal_lm: Any, kind: str, *, seed: int = 1, scale: float = 0.05) -> None:
    """Change every parameter and persistent buffer of a kind (see `kinds_of`) in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in causal_lm.state_dict().items():
        if _kind(name) == kind and tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)


def kinds_of(causal_lm: Any) -> list[str]:
    """The kinds of parameters and persistent buffers: names with # in place of numbers."""
    return list(dict.fromkeys(_kind(name) for name in causal_lm.state_dict()))


def _kind(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def save_family(family: str, path: Path) -> Any:
    """Write a tiny model to a folder; returns it as read back from there."""
    causal_lm = tiny_model(family)
    causal_lm.save_pretrained(path)
    if family in SPELLED:
        causal_lm.config.architectures = [SPELLED[family]]
        causal_lm.config.save_pretrained(path)
    return read_back(path)


def read_back(path: Path) -> Any:
    """The model of a folder, in float32."""
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return causal_lm.eval()
