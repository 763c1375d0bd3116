"""From the reward of each token to the return of what follows it.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def return_to_go(reward_BT: Tensor, response_mask_BT: Tensor, *, discount: float = 0.0) -> Tensor:
    """Return `sum over s >= t of discount**(s - t) * reward_s` per token; 0 outside the mask.

    Discount 0, the default of every published method, credits a token with its own reward alone. Rows are
    whole responses. Works in log2(T) passes: each doubles the number of rewards that a slot has summed.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be >= 0 and <= 1, got {discount}")
    mask_BT = response_mask_BT.bool()
    return_BT = torch.where(mask_BT, reward_BT.detach(), 0.0)
    reach = 1
    while discount > 0.0 and reach < return_BT.shape[-1]:
        later_BT = torch.zeros_like(return_BT)
        later_BT[..., :-reach] = return_BT[..., reach:]
        return_BT = return_BT + discount**reach * later_BT
        reach *= 2
    return torch.where(mask_BT, return_BT, 0.0)
