"""Attention of packed sequences, one after the other: none pays for pairs of tokens that do not see each other.

`sdpa` of transformers masks them: a micro-batch of N tokens then costs N x N products per head however short its
sequences are, and the mask keeps GPUs from their fastest kernels. Here each sequence is one causal call.

Shapes: N packed tokens, S sequences.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED = "packed_sdpa"
"""Its name in transformers, which makes no mask for names that it does not know."""

OTHER_ATTENTION = ("attention_chunk_size", "attn_logit_softcapping")
"""Settings of models whose attention is not plainly causal, whatever their layers are called."""


def use_packed_attention(causal_lm: Any) -> None:
    """Let a model loaded with `sdpa` attend sequence by sequence, if its layers attend to all that came before.

    Models with windows, chunks or capped scores, and those without transformers' common interface, stay as they
    are.
    """
    config = causal_lm.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    has_window = layer_types is None and getattr(config, "sliding_window", None) is not None
    is_plain = (
        causal_lm._supports_attention_backend
        and set(layer_types or ()) <= {"full_attention"}
        and not has_window
        and not any(getattr(config, name, None) for name in OTHER_ATTENTION)
    )
    if config._attn_implementation == "sdpa" and is_plain:
        AttentionInterface.register(PACKED, _attend)
        causal_lm.set_attn_implementation(PACKED)


def sequence_bounds(causal_lm: Any, position_ids_N: Tensor) -> Tensor | None:
    """Return where sequences begin and the last one ends, [1, 1, 1, S + 1], for a model that needs it; else None.

    It takes the place of the attention mask, which transformers hands on as it is if it has four dimensions.
    """
    if causal_lm.config.get_text_config()._attn_implementation != PACKED:
        return None
    starts_S = (position_ids_N == 0).nonzero()[:, 0].cpu()
    return torch.cat([starts_S, torch.tensor([len(position_ids_N)])])[None, None, None]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of the only row; without bounds, each row is one sequence."""
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **settings)
    outputs = []
    for start, end in pairwise(attention_mask.flatten().tolist()):
        part = (slice(None), slice(None), slice(start, end))
        output, _ = sdpa_attention_forward(module, query[part], key[part], value[part], None, **settings)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None
