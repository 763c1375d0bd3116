"""Rewards -> returns, graded outcomes -> advantages, and the sum of both.

Shapes: P prompts, K samples per prompt, B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_probs import at_least_float32


def group_advantage(outcome_PK: Tensor, *, std: str = "sample", eps: float = 1e-6) -> Tensor:
    """Return GRPO's advantage, `(outcome - mean) / (std + eps)` over the K samples of a prompt; detached.

    `std` is `sample` (divisor K - 1), `population` (divisor K), or `none`: not divided at all. A group whose
    outcomes are all the same has advantage 0.

    >>> group_advantage(torch.tensor([[1.0, 0.0]]), std="none")
    tensor([[ 0.5000, -0.5000]])
    """
    if std not in ("sample", "population", "none"):
        raise ValueError(f"std must be one of sample, population, none, got {std!r}")
    outcome_PK = at_least_float32(outcome_PK.detach())
    centred_PK = outcome_PK - outcome_PK.mean(dim=-1, keepdim=True)
    is_constant_P1 = (outcome_PK == outcome_PK[..., :1]).all(dim=-1, keepdim=True)
    if std != "none":
        divisor = max(outcome_PK.shape[-1] - (std == "sample"), 1)
        std_P1 = (centred_PK.square().sum(dim=-1, keepdim=True) / divisor).sqrt()
        centred_PK = centred_PK / (std_P1 + eps)
    return centred_PK.masked_fill(is_constant_P1, 0.0)


def mix_outcome(
    outcome_advantage_B: Tensor,
    reward_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    rl_coef: float = 1.0,
    opd_coef: float = 1.0,
) -> Tensor:
    """Return `rl_coef * outcome advantage + opd_coef * reward` per token; 0 outside the mask.

    Advantages are added, not outcomes and rewards, because the outcome is normalised per group. Both parts share
    mask and denominator.
    """
    mixed_BT = rl_coef * outcome_advantage_B.detach().unsqueeze(-1) + opd_coef * reward_BT.detach()
    return torch.where(response_mask_BT.bool(), mixed_BT, 0.0)


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
