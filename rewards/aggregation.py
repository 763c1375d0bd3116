"""From one loss per token to the scalar that is differentiated.

Shapes: B sequences, T tokens. The window is everything that one optimizer step trains on, over all
micro-batches and ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.catalogue import AGGREGATIONS
from rewards.log_probs import at_least_float32
from rewards.parameters import check_name


def aggregate(
    loss_BT: Tensor,
    response_mask_BT: Tensor,
    how: str = "window_token_mean",
    num_tokens: int | Tensor | None = None,
    *,
    num_sequences: int | Tensor | None = None,
) -> Tensor:
    """Return the scalar loss of this part of the window; the parts of a window add up to the window's loss.

    `window_token_mean` divides by `num_tokens`, the sequence modes by `num_sequences` (responses with at
    least one token). Give the counts of the whole window when this tensor is one part of it; by default they
    are this tensor's own. An empty mask gives 0, still attached to the graph, so that every rank runs its
    backward pass.

    >>> aggregate(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(3.)
    """
    check_name("how", how, AGGREGATIONS)
    mask_BT = response_mask_BT.bool()
    kept_BT = torch.where(mask_BT, at_least_float32(loss_BT), 0.0)
    own_tokens, own_sequences = window_counts(response_mask_BT).unbind()
    if how == "window_token_mean":
        return kept_BT.sum() / at_least_one(own_tokens if num_tokens is None else num_tokens)
    loss_B = kept_BT.sum(dim=-1)
    if how == "seq_mean_token_mean":
        loss_B = loss_B / mask_BT.sum(dim=-1).clamp(min=1)
    return loss_B.sum() / at_least_one(own_sequences if num_sequences is None else num_sequences)


def window_counts(response_mask_BT: Tensor) -> Tensor:
    """Return (unmasked tokens, responses with at least one) as int64: sum it over all parts of the window."""
    mask_BT = response_mask_BT.bool()
    return torch.stack([mask_BT.sum(), mask_BT.any(dim=-1).sum()])


def at_least_one(count: int | Tensor) -> int | Tensor:
    """Return the count as a denominator."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
