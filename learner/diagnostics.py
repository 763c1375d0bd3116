"""Diagnostics of one optimizer step beyond its means: where in a response the signal lies, and its tails.

A bounded reward keeps its signal early and late alike, while the log-ratio of one unlikely token can outweigh a
whole batch (arXiv 2606.17199, section 3): `reward_abs/*` by position and `log_ratio/*` show it live.

Shapes: T response tokens of this rank's window, P buckets of position, Q quantiles.
"""

import torch
from torch import Tensor

from learner.metrics import StepTokens, gather_sample
from learner.ranks import Ranks

THIRDS = ("early", "middle", "late")
CURVE_BUCKETS = 10
"""Buckets of the curves `reward/position_0` (first tenth of a response) to `_9`, and `reward_std/position_0`."""

REWARD_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LOG_RATIO_QUANTILES = (0.001, 0.01, 0.05)
NEGATIVE_TAIL = -5.0
"""A log-ratio below this counts as tail: the teacher gives the token under 0.7 % of the student's probability."""


def step_diagnostics(tokens: StepTokens, *, ranks: Ranks) -> dict[str, float]:
    """Return the diagnostics of a step, the same on every rank. Every rank must call it."""
    trained_T = tokens.is_trained_T
    reward_T = tokens.reward_T[trained_T]
    log_ratio_T = (tokens.teacher_logp_T - tokens.logp_T)[trained_T]
    log_ratio_T = log_ratio_T[log_ratio_T.isfinite()]
    return {
        **_by_position(reward_T, tokens.position_T[trained_T], ranks=ranks),
        **_quantiles("reward", reward_T, REWARD_QUANTILES, ranks=ranks),
        **_quantiles("log_ratio", log_ratio_T, LOG_RATIO_QUANTILES, ranks=ranks),
        "log_ratio/min": -float(ranks.max(torch.cat([-log_ratio_T, log_ratio_T.new_zeros(1)]).max())),
        f"log_ratio/frac_lt_{NEGATIVE_TAIL:g}": _mean(log_ratio_T < NEGATIVE_TAIL, ranks=ranks),
        **_mismatch(tokens, ranks=ranks),
        **_staleness(tokens.staleness_T[trained_T], ranks=ranks),
    }


def _by_position(reward_T: Tensor, position_T: Tensor, *, ranks: Ranks) -> dict[str, float]:
    """Mean reward and mean |reward| by third of the response; over tenths, mean and standard deviation."""
    metrics: dict[str, float] = {}
    thirds = _bucket_means(torch.stack([reward_T, reward_T.abs()]), position_T, len(THIRDS), ranks=ranks)
    for name, reward, magnitude in zip(THIRDS, *thirds, strict=True):
        metrics |= {f"reward/{name}": reward, f"reward_abs/{name}": magnitude}
    tenths = _bucket_means(torch.stack([reward_T, reward_T.square()]), position_T, CURVE_BUCKETS, ranks=ranks)
    for index, (mean, square) in enumerate(zip(*tenths, strict=True)):
        metrics |= {
            f"reward/position_{index}": mean,
            f"reward_std/position_{index}": max(square - mean * mean, 0.0) ** 0.5,
        }
    return metrics


def _bucket_means(values_XT: Tensor, position_T: Tensor, num_buckets: int, *, ranks: Ranks) -> list[list[float]]:
    """Mean of each row of values in equal buckets of position in [0, 1]; 0 where a bucket is empty."""
    bucket_T = (position_T * num_buckets).long().clamp(max=num_buckets - 1)
    sums_XP = values_XT.new_zeros(values_XT.shape[0] + 1, num_buckets)
    counted_XT = torch.cat([values_XT, torch.ones_like(values_XT[:1])])
    sums_XP.index_add_(1, bucket_T, counted_XT)
    *sums, counts_P = ranks.sum(sums_XP)
    return [(sum_P / counts_P.clamp(min=1)).tolist() for sum_P in sums]


def _quantiles(name: str, values_T: Tensor, quantiles: tuple[float, ...], *, ranks: Ranks) -> dict[str, float]:
    all_T = gather_sample(values_T, ranks=ranks)
    points_Q = torch.tensor(quantiles, dtype=torch.float64, device=all_T.device)
    found = all_T.quantile(points_Q).tolist() if all_T.numel() else [0.0] * len(quantiles)
    return {f"{name}/p{100 * q:g}": value for q, value in zip(quantiles, found, strict=True)}


def _staleness(staleness_T: Tensor, *, ranks: Ranks) -> dict[str, float]:
    """Trained tokens by staleness, `staleness/lag_0` to the largest of the step: exact, over all ranks."""
    lag_T = staleness_T.clamp(min=0).long()
    largest = int(ranks.max(torch.cat([lag_T, lag_T.new_zeros(1)]).max()))
    counts = ranks.sum(torch.bincount(lag_T, minlength=largest + 1))
    return {f"staleness/lag_{lag}": float(count) for lag, count in enumerate(counts)}


def _mismatch(tokens: StepTokens, *, ranks: Ranks) -> dict[str, float]:
    """Mean |learner - engine| log-prob of fresh tokens (numerics alone) and of stale ones (and staleness)."""
    difference_T = (tokens.logp_T - tokens.behaviour_logp_T).abs()
    fresh_T = tokens.is_trained_T & (tokens.staleness_T == 0)
    stale_T = tokens.is_trained_T & (tokens.staleness_T > 0)
    return {
        "mismatch/mean_lag0": _mean(difference_T[fresh_T], ranks=ranks),
        "mismatch/mean_stale": _mean(difference_T[stale_T], ranks=ranks),
    }


def _mean(values_T: Tensor, *, ranks: Ranks) -> float:
    ones_T = torch.ones_like(values_T, dtype=torch.float64)
    total = ranks.sum(torch.stack([values_T.double().sum(), ones_T.sum()]))
    return float(total[0] / total[1].clamp(min=1))
