"""OPD+: the sampled policy gradient of an f-divergence E_p[f(u)] with u = t / p (arXiv 2606.01039).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewards.log_ratio import extended_log_ratio

LOG_2 = math.log(2.0)


def opd_plus_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    divergence: str = "jsd",
    naive: bool = False,
    log_ratio_bound: float | None = None,
) -> Tensor:
    """Return the reward of the sampled token: detached, 0 outside the mask.

    Exact: `u * f'(u) - f(u)`, whose expected policy gradient is that of the divergence. Naive: `-f(u)`, a
    different estimator. Log-ratios are clipped to +-`log_ratio_bound`. Without a bound, rkl has no value at a
    log-prob of -inf and gives 0, and u may overflow: the caller masks and counts both (`drop_non_finite`).
    """
    log_u_BT = extended_log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT)
    if log_ratio_bound is not None:
        log_u_BT = log_u_BT.clamp(min=-log_ratio_bound, max=log_ratio_bound)
    reward_BT = (NAIVE if naive else EXACT)[divergence](log_u_BT)
    is_without_value_BT = log_u_BT.isinf() & ~reward_BT.isfinite()
    kept_BT = response_mask_BT.bool() & ~is_without_value_BT
    return torch.where(kept_BT, reward_BT, 0.0)


def jsd_exact(log_u_BT: Tensor) -> Tensor:
    """Return log((1 + u) / 2) / 2, at least -log(2) / 2."""
    return 0.5 * (log_one_plus_u(log_u_BT) - LOG_2)


def fkl_naive(log_u_BT: Tensor) -> Tensor:
    """Return -u * log(u), 0 at u = 0."""
    return -_u_log_u(log_u_BT)


def jsd_naive(log_u_BT: Tensor) -> Tensor:
    """Return -(u * log(u) - (1 + u) * log((1 + u) / 2)) / 2."""
    return -0.5 * (_u_log_u(log_u_BT) - (1.0 + log_u_BT.exp()) * (log_one_plus_u(log_u_BT) - LOG_2))


def log_one_plus_u(log_u_BT: Tensor) -> Tensor:
    """Return log(1 + u), also where u overflows."""
    return torch.logaddexp(log_u_BT, torch.zeros_like(log_u_BT))


def _u_log_u(log_u_BT: Tensor) -> Tensor:
    u_BT = log_u_BT.exp()
    return torch.where(u_BT == 0.0, 0.0, u_BT * log_u_BT)


EXACT = {"fkl": torch.exp, "rkl": lambda log_u_BT: log_u_BT - 1.0, "jsd": jsd_exact}
NAIVE = {"fkl": fkl_naive, "rkl": lambda log_u_BT: log_u_BT, "jsd": jsd_naive}
