"""Surrogates: advantage -> loss per token, differentiable in the current log-prob.

Shapes: B sequences, T tokens. Advantages are detached; every loss is 0 outside the mask. Advantages and log-probs
under the mask must be finite: use the mask of `drop_non_finite`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.importance import decoupled_weight, importance_ratio
from rewards.log_probs import selected_log_probs
from rewards.power import power_reward


def policy_gradient(logp_BT: Tensor, advantage_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return `-advantage * logp`; an importance weight may be multiplied into the advantage."""
    return -_selected(advantage_BT, response_mask_BT) * selected_log_probs(logp_BT, response_mask_BT)


def unclipped(
    logp_BT: Tensor, advantage_BT: Tensor, response_mask_BT: Tensor, *, behaviour_logp_BT: Tensor
) -> Tensor:
    """Return `-ratio * advantage` with the gradient of the ratio (AsyncOPD, arXiv 2606.24143).

    With the advantage under the current student, this is what corrects staleness there. Its gradient is that of
    the policy gradient with the `unclipped` importance weight.
    """
    ratio_BT = importance_ratio(logp_BT, behaviour_logp_BT, response_mask_BT)
    return -ratio_BT * _selected(advantage_BT, response_mask_BT)


def ppo(
    logp_BT: Tensor,
    advantage_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    behaviour_logp_BT: Tensor,
    eps: float = 0.2,
    c: float | None = None,
) -> Tensor:
    """Return PPO's clipped loss; with `c`, a negative advantage costs at most `-c * advantage` (dual clip)."""
    ratio_BT = importance_ratio(logp_BT, behaviour_logp_BT, response_mask_BT)
    return clipped_loss(ratio_BT, _selected(advantage_BT, response_mask_BT), eps=eps, c=c)


def decoupled_ppo(
    logp_BT: Tensor,
    advantage_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    behaviour_logp_BT: Tensor,
    proximal_logp_BT: Tensor,
    eps: float = 0.2,
    cap: float = 5.0,
    c: float | None = None,
) -> Tensor:
    """Return PPO's loss against the proximal policy, weighted by proximal over behaviour (0 above the cap)."""
    ratio_BT = importance_ratio(logp_BT, proximal_logp_BT, response_mask_BT)
    weight_BT = decoupled_weight(
        logp_BT, behaviour_logp_BT, response_mask_BT, proximal_logp_BT=proximal_logp_BT, cap=cap
    )
    return weight_BT * clipped_loss(ratio_BT, _selected(advantage_BT, response_mask_BT), eps=eps, c=c)


def dppo(
    logp_BT: Tensor,
    advantage_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    behaviour_logp_BT: Tensor,
    low: float = 0.2,
    high: float = 0.2,
) -> Tensor:
    """Return the unclipped loss on the tokens that `dppo_mask` keeps, 0 on others (prime-rl)."""
    keep_BT = dppo_mask(
        logp_BT, advantage_BT, response_mask_BT, behaviour_logp_BT=behaviour_logp_BT, low=low, high=high
    )
    loss_BT = unclipped(logp_BT, advantage_BT, response_mask_BT, behaviour_logp_BT=behaviour_logp_BT)
    return torch.where(keep_BT, loss_BT, 0.0)


def dppo_mask(
    logp_BT: Tensor,
    advantage_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    behaviour_logp_BT: Tensor,
    low: float = 0.2,
    high: float = 0.2,
) -> Tensor:
    """Return the tokens whose probability has not yet moved too far in the direction of the advantage.

    A positive advantage stops at a rise of `high`, a negative one at a fall of `low`: differences, not ratios.
    """
    moved_BT = probability_difference(logp_BT, behaviour_logp_BT, response_mask_BT)
    advantage_BT = _selected(advantage_BT, response_mask_BT)
    is_spent_BT = ((advantage_BT > 0.0) & (moved_BT > high)) | ((advantage_BT < 0.0) & (moved_BT < -low))
    return response_mask_BT.bool() & ~is_spent_BT


def probability_difference(logp_BT: Tensor, behaviour_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return `exp(logp) - exp(behaviour_logp)`: detached, 0 outside the mask."""
    return power_reward(logp_BT, behaviour_logp_BT, response_mask_BT, alpha=1.0)


def clipped_loss(ratio_BT: Tensor, advantage_BT: Tensor, *, eps: float, c: float | None) -> Tensor:
    """Return `-min(ratio * advantage, clip(ratio, 1 - eps, 1 + eps) * advantage)`, bounded by c if given."""
    clipped_BT = ratio_BT.clamp(min=1.0 - eps, max=1.0 + eps)
    loss_BT = -torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if c is None:
        return loss_BT
    return torch.where(advantage_BT < 0.0, torch.minimum(loss_BT, -c * advantage_BT), loss_BT)


def _selected(advantage_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    return torch.where(response_mask_BT.bool(), advantage_BT.detach(), 0.0)
