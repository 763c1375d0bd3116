"""How every objective reads log-probs: masked slots out first, then at least float32, then at most 0.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_log_probs(logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return detached log-probs of at most 0, in float32 (float64 if they come so), and 0 outside the mask.

    Selecting comes before any arithmetic because NaN * 0 is NaN. Engines may return log-probs a little above
    0, which would break the bounds of bounded rewards.
    """
    selected_BT = torch.where(response_mask_BT.bool(), logp_BT.detach(), 0.0)
    return at_least_float32(selected_BT).clamp(max=0.0)


def log_difference(left_BT: Tensor, right_BT: Tensor) -> Tensor:
    """Return left - right, and 0 where both are equal: also where both are -inf, whose difference is NaN."""
    return torch.where(left_BT == right_BT, 0.0, left_BT - right_BT)


def at_least_float32(values: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)
