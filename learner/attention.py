"""Attention over sequences that are laid end to end: each attends to itself alone, by PyTorch's own causal kernels.

transformers keeps packed sequences apart by a mask over all pairs of tokens of the micro-batch, [N, N], and computes
every pair: 25 sequences cost 25 times the attention they need, and a mask also keeps PyTorch from its fastest
kernels. Here every sequence is a call of its own, without a mask.

Shapes: N packed tokens, H heads, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BY_SEQUENCE = "poweropd_sdpa_by_sequence"
"""Its name among transformers' attention implementations. transformers makes no masks for names it does not know."""

OTHER_ATTENTION = ("attention_chunk_size", "attn_logit_softcapping")
"""Settings of models whose attention is not plainly causal, whatever their layers are called."""


def attention_by_sequence(
    module: nn.Module,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    attention_mask: Tensor | None,
    *,
    sequence_lengths: Sequence[int] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the sequences, whose lengths add up to N: [1, N, H, D].

    Without lengths all N tokens are one sequence.
    """
    assert attention_mask is None, "masks are not made for this attention"
    if len(sequence_lengths) < 2:
        return sdpa_attention_forward(module, query_1HND, key_1HND, value_1HND, None, **options)
    lengths = list(sequence_lengths)
    parts = zip(*(heads.split(lengths, dim=2) for heads in (query_1HND, key_1HND, value_1HND)), strict=True)
    attended = [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts]
    return torch.cat(attended, dim=1), None


def sequence_lengths(position_ids_N: Tensor) -> tuple[int, ...]:
    """The lengths of packed sequences: position ids begin at 0 in each. Waits for the device."""
    starts = (position_ids_N == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(position_ids_N)]
    return tuple(end - start for start, end in zip(starts, ends, strict=True))


def attend_by_sequence(causal_lm: nn.Module) -> bool:
    """Let a model with transformers' sdpa attend sequence by sequence if it can; returns whether it does.

    It can if every layer attends to all tokens that came before, through transformers' common interface. Other
    models (sliding windows, chunks, capped scores) keep what they have.
    """
    if not isinstance(causal_lm, PreTrainedModel) or causal_lm.config._attn_implementation != "sdpa":
        return False
    config = causal_lm.config
    layer_types = getattr(config, "layer_types", None) or ()
    is_plain = (
        causal_lm._supports_attention_backend
        and set(layer_types) <= {"full_attention"}
        and not (getattr(config, "sliding_window", None) and not layer_types)
        and not any(getattr(config, name, None) for name in OTHER_ATTENTION)
    )
    if is_plain:
        causal_lm.set_attn_implementation(BY_SEQUENCE)
    return is_plain


ALL_ATTENTION_FUNCTIONS.register(BY_SEQUENCE, attention_by_sequence)
