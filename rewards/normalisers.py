"""Normalisers of the reward over the window of one optimizer step: statistics of its parts, and their use.

Shapes: B sequences, T tokens, S statistics of one normaliser. Statistics are float64, so that the order in
which parts of the window are merged does not show. Rewards under the mask must be finite: use the mask of
`drop_non_finite`.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-8
"""Smaller scales count as this, as in the PowerOPD code: a constant window must not divide by 0."""

MEAN_ROUNDING = 1e-14
"""Relative error of a float64 mean; a deviation below it is noise, which SMALLEST_SCALE would blow up."""


def no_statistics(reward_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return an empty tensor: nothing of the window is needed."""
    return reward_BT.new_zeros(0, dtype=torch.float64)


def apply_none(reward_BT: Tensor, response_mask_BT: Tensor, statistics_S: Tensor) -> Tensor:
    """Return the reward, detached and 0 outside the mask."""
    return torch.where(response_mask_BT.bool(), reward_BT.detach(), 0.0)


def zscore_statistics(reward_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return (count, sum, sum of squares) of the unmasked rewards."""
    mask_BT = response_mask_BT.bool()
    kept_BT = torch.where(mask_BT, reward_BT.detach(), 0.0).double()
    return torch.stack([mask_BT.sum().double(), kept_BT.sum(), kept_BT.square().sum()])


def apply_zscore(reward_BT: Tensor, response_mask_BT: Tensor, statistics_S: Tensor) -> Tensor:
    """Return `(reward - mean) / max(std, 1e-8)` with the population std. The sign of a reward may change."""
    count, total, total_of_squares = statistics_S.unbind()
    count = count.clamp(min=1.0)
    mean = total / count
    std = (total_of_squares / count - mean.square()).clamp(min=0.0).sqrt()
    mask_BT = response_mask_BT.bool()
    deviation_BT = torch.where(mask_BT, reward_BT.detach(), 0.0).double() - mean
    is_noise_BT = deviation_BT.abs() <= MEAN_ROUNDING * mean.abs()
    scaled_BT = deviation_BT / std.clamp(min=SMALLEST_SCALE)
    return torch.where(mask_BT & ~is_noise_BT, scaled_BT, 0.0).to(reward_BT.dtype)


def sign_max_abs_statistics(reward_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return (largest positive reward, size of the largest negative one), 0 for a class without members."""
    kept = torch.where(response_mask_BT.bool(), reward_BT.detach(), 0.0).double().flatten()
    kept = torch.cat([kept, kept.new_zeros(1)])
    return torch.stack([kept.amax(), kept.neg().amax()])


def apply_sign_max_abs(reward_BT: Tensor, response_mask_BT: Tensor, statistics_S: Tensor) -> Tensor:
    """Return each reward over the largest of its sign, in [-1, 1]; signs and zeros stay."""
    scale_S = torch.where(statistics_S > 0.0, statistics_S.clamp(min=SMALLEST_SCALE), 1.0)
    positive_scale, negative_scale = scale_S.unbind()
    kept_BT = torch.where(response_mask_BT.bool(), reward_BT.detach(), 0.0).double()
    scaled_BT = kept_BT / torch.where(kept_BT > 0.0, positive_scale, negative_scale)
    return scaled_BT.to(reward_BT.dtype)
