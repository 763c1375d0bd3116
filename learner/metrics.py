"""What one optimizer step did, as numbers: sums over tokens on each rank, one reduction, then means.

Of all tokens, of graded outcomes, and by teacher where there are several.

Shapes: T response tokens of this rank's window, B its sequences, G its groups, K teachers, M metrics.
"""

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from learner.collate import MASKED_BY, PackedBatch
from learner.facts import BASELINE_VARIANCE, RAW_VARIANCE
from learner.loss import MicroBatchLoss
from learner.ranks import Ranks

MAX_QUANTILE_TOKENS = 65_536
"""Rewards per rank that enter the quantile; with more tokens, an evenly spaced sample of so many."""

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp, as importance weights are."""


class StepTokens:
    """All response tokens of this rank's window, joined from its micro-batches; nothing carries gradient."""

    def __init__(self, batches: Sequence[PackedBatch], losses: Sequence[MicroBatchLoss], *, step: int) -> None:
        """Join micro-batches; `step` is the weight version before the update."""
        self.is_trained_T = torch.cat([loss.is_trained_T for loss in losses])
        self.reward_T = torch.cat([loss.reward_T for loss in losses]).double()
        self.divergence_T = torch.cat([loss.divergence_T for loss in losses]).double()
        self.outside_top_k_T = torch.cat(
            [(batch.teacher_topk_ids_TK != batch.target_ids_T[:, None]).all(dim=-1) for batch in batches]
        )
        self.top_k_mass_T = torch.cat([batch.teacher_topk_logp_TK.exp().sum(dim=-1) for batch in batches]).double()
        self.importance_T = torch.cat([loss.importance_T for loss in losses]).double()
        self.logp_T = torch.cat([loss.logp_T for loss in losses]).double()
        self.entropy_T = torch.cat([loss.entropy_T for loss in losses]).double()
        self.teacher_logp_T = torch.cat([batch.teacher_logp_T for batch in batches]).double()
        self.behaviour_logp_T = torch.cat([batch.behaviour_logp_T for batch in batches]).double()
        self.response_mask_T = torch.cat([batch.response_mask_T for batch in batches])
        self.masked_by_T = torch.cat([batch.masked_by_T for batch in batches])
        self.is_stop_T = torch.cat([batch.is_stop for batch in batches])
        self.facts = {
            name: torch.cat([loss.facts[name] for loss in losses]).double()
            for name in losses[0].facts
            if "/" in name
        }
        """Facts that are metrics, by name."""
        self.staleness_T = step - torch.cat([batch.weight_version_T for batch in batches])
        self.position_T = torch.cat([batch.relative_position for batch in batches]).double()
        self.response_length_B = torch.cat([batch.response_length_B for batch in batches])
        self.is_truncated_B = torch.cat([batch.is_truncated_B for batch in batches])
        self.has_stop_B = torch.cat([batch.has_stop_B for batch in batches])
        self.loss = torch.stack([loss.loss.detach() for loss in losses]).sum().double()


def step_metrics(
    tokens: StepTokens,
    *,
    importance_cap: float,
    ranks: Ranks,
    has_divergence: bool = False,
    has_top_k: bool = False,
) -> dict[str, float]:
    """Return the metrics of a step, the same on every rank. Every rank must call it.

    `importance_cap` is the weight at which `importance/capped_frac` counts a token as capped. The last two say
    whether the objective has a divergence, and whether the teacher sent its top k tokens.
    """
    sums = _reduce(_sums(tokens, importance_cap=importance_cap), ranks.sum)
    maxima = _reduce(_maxima(tokens), ranks.max)
    trained, responses = max(sums["trained"], 1.0), max(sums["responses"], 1.0)
    fresh = max(sums["fresh"], 1.0)
    further = {name: sums[name] / trained for name in tokens.facts}
    if RAW_VARIANCE in further:
        raw = further[RAW_VARIANCE]
        further["gradient_variance/ratio"] = further[BASELINE_VARIANCE] / raw if raw > 0 else 1.0
    if has_divergence:
        further["divergence/mean"] = sums["divergence"] / trained
    if has_top_k:
        further["topk/teacher_mass"] = sums["top_k_mass"] / trained
        further["topk/sampled_outside_frac"] = sums["outside_top_k"] / trained
    return further | {
        "loss": sums["loss"],
        "tokens_trained": sums["trained"],
        "reward/mean": sums["reward"] / trained,
        "reward/abs_p95": abs_quantile(tokens.reward_T[tokens.is_trained_T], 0.95, ranks=ranks),
        "reward/frac_abs_gt_0.01": sums["reward_visible"] / trained,
        "reward/frac_gt_0": sums["reward_positive"] / trained,
        "reward/frac_lt_0": sums["reward_negative"] / trained,
        "reward/positive_mean": sums["reward_positive_sum"] / max(sums["reward_positive"], 1.0),
        "reward/negative_mean": sums["reward_negative_sum"] / max(sums["reward_negative"], 1.0),
        "kl/reverse": sums["reverse_kl"] / max(sums["reverse_kl_tokens"], 1.0),
        "kl/mismatch": sums["mismatch"] / trained,
        "kl/mismatch_lag0": sums["mismatch_fresh"] / fresh,
        "mismatch/max_lag0": maxima["mismatch_fresh"],
        "importance/mean": sums["importance"] / trained,
        "importance/max": maxima["importance"],
        "importance/min": -maxima["negative_importance"] if sums["trained"] else 0.0,
        "importance/frac_eq_0": sums["importance_zero"] / trained,
        "importance/capped_frac": sums["importance_capped"] / trained,
        "entropy": sums["entropy"] / trained,
        "staleness/mean": sums["staleness"] / trained,
        "staleness/max": maxima["staleness"],
        "response_length/mean": sums["response_length"] / responses,
        "response_length/max": maxima["response_length"],
        "response_length/log_mean": sums["log_length"] / responses,
        "response_length/log_std": _std(sums["log_length"], sums["log_length_squared"], responses),
        "truncated_frac": sums["truncated"] / responses,
        **{f"masked/{name}": sums[f"masked_{name}"] for name in MASKED_BY},
        "masked/nonfinite": sums["masked_nonfinite"],
        "stop/missing": sums["stop_missing"],
        "stop/present_frac": 1.0 - sums["stop_missing"] / responses if sums["responses"] else 0.0,
        "stop/reward_mean": sums["stop_reward"] / max(sums["stop_trained"], 1.0),
    }


def outcome_metrics(batches: Sequence[PackedBatch], *, ranks: Ranks) -> dict[str, float]:
    """Return the metrics of graded outcomes, the same on every rank. Every rank must call it.

    `outcome/mean` is the accuracy of the responses, `outcome/advantage_abs_mean` the mean |advantage|, and
    `outcome/constant_groups_frac` the share of groups whose outcomes are all the same: they have advantage 0.
    """
    outcome_B = torch.cat([batch.outcome_B for batch in batches]).double()
    advantage_B = torch.cat([batch.outcome_advantage_B for batch in batches]).double()
    slot_B = torch.cat([batch.slot_B for batch in batches])
    is_constant_G = _is_constant(outcome_B, slot_B)
    own = [outcome_B.sum(), advantage_B.abs().sum(), outcome_B.new_tensor(len(outcome_B))]
    own += [is_constant_G.double().sum(), outcome_B.new_tensor(len(is_constant_G))]
    outcome, advantage, responses, constant, groups = ranks.sum(torch.stack(own)).tolist()
    return {
        "outcome/mean": outcome / max(responses, 1.0),
        "outcome/advantage_abs_mean": advantage / max(responses, 1.0),
        "outcome/constant_groups_frac": constant / max(groups, 1.0),
    }


def teacher_metrics(
    batches: Sequence[PackedBatch], tokens: StepTokens, *, names: Sequence[str], ranks: Ranks
) -> dict[str, float]:
    """Return `kl/reverse/NAME`, `reward/mean/NAME` and `tokens_trained/NAME`, the same on every rank.

    `tokens` are those of `batches`; `names` are the teachers in the order of `PackedBatch.teacher_B`. A teacher of
    none of the step's tokens has 0. Every rank must call it.
    """
    teacher_T = torch.cat([batch.teacher_B[batch.row_T] for batch in batches])
    kl_T = tokens.logp_T - tokens.teacher_logp_T
    has_kl_T = tokens.is_trained_T & kl_T.isfinite()
    trained_T = tokens.is_trained_T
    values_4T = torch.stack(
        [
            torch.where(has_kl_T, kl_T, 0.0),
            has_kl_T.double(),
            torch.where(trained_T, tokens.reward_T, 0.0),
            trained_T.double(),
        ]
    )
    sums_4K = values_4T.new_zeros(4, len(names)).index_add_(1, teacher_T, values_4T)
    kl_K, kl_tokens_K, reward_K, trained_K = ranks.sum(sums_4K)
    means = {
        "kl/reverse": kl_K / kl_tokens_K.clamp(min=1.0),
        "reward/mean": reward_K / trained_K.clamp(min=1.0),
        "tokens_trained": trained_K,
    }
    return {
        f"{metric}/{name}": value
        for metric, values_K in means.items()
        for name, value in zip(names, values_K.tolist(), strict=True)
    }


def abs_quantile(values_T: Tensor, q: float, *, ranks: Ranks) -> float:
    """Return the q-quantile of |values| over all ranks, linearly interpolated; 0 without any value.

    Exact up to `MAX_QUANTILE_TOKENS` per rank, see `gather_sample`. Every rank must call it.
    """
    all_T = gather_sample(values_T.abs(), ranks=ranks)
    return float(all_T.quantile(q)) if all_T.numel() else 0.0


def gather_sample(values_T: Tensor, *, ranks: Ranks) -> Tensor:
    """Return the values of all ranks as float64; of a rank with very many, an evenly spaced sample.

    Its size is at most `MAX_QUANTILE_TOKENS` per rank. Every rank must call it.
    """
    stride = -(-max(values_T.numel(), 1) // MAX_QUANTILE_TOKENS)
    return ranks.gather(values_T[::stride].double())


def _sums(tokens: StepTokens, *, importance_cap: float) -> dict[str, Tensor]:
    trained_T, reward_T = tokens.is_trained_T, tokens.reward_T
    fresh_T = trained_T & (tokens.staleness_T == 0)
    log_ratio_T = (tokens.logp_T - tokens.behaviour_logp_T).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    mismatch_T = log_ratio_T.expm1() - log_ratio_T
    reverse_kl_T = tokens.logp_T - tokens.teacher_logp_T
    has_kl_T = trained_T & reverse_kl_T.isfinite()
    return {
        "loss": tokens.loss,
        "trained": trained_T.sum(),
        "fresh": fresh_T.sum(),
        "divergence": tokens.divergence_T[trained_T].sum(),
        "top_k_mass": tokens.top_k_mass_T[trained_T].sum(),
        "outside_top_k": tokens.outside_top_k_T[trained_T].sum(),
        "reward": reward_T[trained_T].sum(),
        "reward_visible": (reward_T[trained_T].abs() > 0.01).sum(),
        "reward_positive": (reward_T[trained_T] > 0).sum(),
        "reward_negative": (reward_T[trained_T] < 0).sum(),
        "reward_positive_sum": reward_T[trained_T].clamp(min=0).sum(),
        "reward_negative_sum": reward_T[trained_T].clamp(max=0).sum(),
        "reverse_kl": reverse_kl_T[has_kl_T].sum(),
        "reverse_kl_tokens": has_kl_T.sum(),
        "mismatch": mismatch_T[trained_T].sum(),
        "mismatch_fresh": mismatch_T[fresh_T].sum(),
        "importance": tokens.importance_T[trained_T].sum(),
        "importance_zero": (tokens.importance_T[trained_T] == 0).sum(),
        "importance_capped": (tokens.importance_T[trained_T] >= importance_cap).sum(),
        "entropy": tokens.entropy_T[trained_T].sum(),
        "staleness": tokens.staleness_T[trained_T].sum(),
        "responses": torch.tensor(tokens.response_length_B.numel(), device=reward_T.device),
        "response_length": tokens.response_length_B.sum(),
        "log_length": tokens.response_length_B.clamp(min=1).double().log().sum(),
        "log_length_squared": tokens.response_length_B.clamp(min=1).double().log().square().sum(),
        "truncated": tokens.is_truncated_B.sum(),
        **{f"masked_{name}": (tokens.masked_by_T == code).sum() for code, name in enumerate(MASKED_BY, start=1)},
        "masked_nonfinite": (tokens.response_mask_T & ~trained_T).sum(),
        "stop_missing": (~tokens.has_stop_B).sum(),
        "stop_trained": (tokens.is_stop_T & trained_T).sum(),
        "stop_reward": reward_T[tokens.is_stop_T & trained_T].sum(),
        **{name: values_T[trained_T].sum() for name, values_T in tokens.facts.items()},
    }


def _maxima(tokens: StepTokens) -> dict[str, Tensor]:
    trained_T = tokens.is_trained_T
    fresh_T = trained_T & (tokens.staleness_T == 0)
    return {
        "importance": _largest(tokens.importance_T[trained_T]),
        "negative_importance": _largest(-tokens.importance_T[trained_T], at_least=-inf),
        "mismatch_fresh": _largest((tokens.logp_T - tokens.behaviour_logp_T).abs()[fresh_T]),
        "staleness": _largest(tokens.staleness_T[trained_T]),
        "response_length": _largest(tokens.response_length_B),
    }


def _std(total: float, squared: float, count: float) -> float:
    return max(0.0, squared / count - (total / count) ** 2) ** 0.5


def _largest(values: Tensor, *, at_least: float = 0.0) -> Tensor:
    return torch.cat([values.double(), values.new_full((1,), at_least, dtype=torch.float64)]).max()


def _reduce(values: dict[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
    reduced_M = reduce(torch.stack([value.double() for value in values.values()]))
    return dict(zip(values, reduced_M.tolist(), strict=True))


def _is_constant(outcome_B: Tensor, slot_B: Tensor) -> Tensor:
    slots_G, group_B = slot_B.unique(return_inverse=True)
    empty_G = outcome_B.new_zeros(len(slots_G))
    lowest_G, highest_G = (
        empty_G.scatter_reduce(0, group_B, outcome_B, how, include_self=False) for how in ("amin", "amax")
    )
    return lowest_G == highest_G
