"""Scores -> reward -> loss: pure functions of tensors, looked up by name.

    TOKEN_REWARDS[name](teacher_logp_BT, student_logp_BT, response_mask_BT, **params) -> reward_BT
    DIVERGENCES[name](student_logits_NV, teacher, **params) -> value_N
    BASELINES[name](student_logits_NV, teacher, **params) -> baseline_N
    NORMALISERS[name](reward_BT, response_mask_BT) -> reward_BT
    TOKEN_MASKS[name](response_mask_BT, **extras, **params) -> response_mask_BT
    TOKEN_WEIGHTS[name](response_mask_BT, **extras, **params) -> weight_BT
    IMPORTANCE_WEIGHTS[name](logp_BT, behaviour_logp_BT, response_mask_BT, **params) -> weight_BT
    SURROGATES[name](logp_BT, advantage_BT, response_mask_BT, **extras, **params) -> loss_BT
    aggregate(loss_BT, response_mask_BT, how=..., num_tokens=None) -> scalar

A divergence and a surrogate carry gradient, everything else is detached. What an entry takes besides its
parameters, such as `reference_logp_BT` or `step`, stands in `Entry.extras` and is passed by keyword.

Importing this package does not import torch: names, parameters and needs are plain data that the command line
checks before anything heavy is loaded. A function of tensors is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rewards.accuracy import avg_at_k, maj_at_k, pass_at_k, pass_at_k_unbiased
from rewards.catalogue import (
    AGGREGATIONS,
    BASELINES,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    NORMALISERS,
    OBJECTIVES,
    SURROGATES,
    TOKEN_MASKS,
    TOKEN_REWARDS,
    TOKEN_WEIGHTS,
    Kind,
    lookup,
    validate,
)
from rewards.grading.outcome import (
    Verdict,
    compare_answers,
    equality_classes,
    extract_answer,
    grade_batch,
    grade_verdicts,
)
from rewards.parameters import Parameter, Params, Rule, check_name, nearest
from rewards.registry import Entry, Needs, NormaliserEntry
from rewards.schedules import scheduled_beta
from rewards.teacher import Teacher, TeacherLogits, TeacherTopK

if TYPE_CHECKING:
    from rewards.advantages import group_advantage, mix_outcome, multi_sample_loss, return_to_go
    from rewards.aggregation import aggregate, window_counts
    from rewards.log_probs import FiniteReward, drop_non_finite
    from rewards.masks import top_fraction_threshold

MODULE_OF_TENSOR_FUNCTION = {
    "aggregate": "rewards.aggregation",
    "window_counts": "rewards.aggregation",
    "FiniteReward": "rewards.log_probs",
    "drop_non_finite": "rewards.log_probs",
    "group_advantage": "rewards.advantages",
    "mix_outcome": "rewards.advantages",
    "multi_sample_loss": "rewards.advantages",
    "return_to_go": "rewards.advantages",
    "top_fraction_threshold": "rewards.masks",
}

__all__ = [
    "AGGREGATIONS",
    "BASELINES",
    "DIVERGENCES",
    "IMPORTANCE_WEIGHTS",
    "NORMALISERS",
    "OBJECTIVES",
    "SURROGATES",
    "TOKEN_MASKS",
    "TOKEN_REWARDS",
    "TOKEN_WEIGHTS",
    "Entry",
    "FiniteReward",
    "Kind",
    "Needs",
    "NormaliserEntry",
    "Parameter",
    "Params",
    "Rule",
    "Teacher",
    "TeacherLogits",
    "TeacherTopK",
    "Verdict",
    "aggregate",
    "avg_at_k",
    "check_name",
    "compare_answers",
    "drop_non_finite",
    "equality_classes",
    "extract_answer",
    "grade_batch",
    "grade_verdicts",
    "group_advantage",
    "lookup",
    "maj_at_k",
    "mix_outcome",
    "multi_sample_loss",
    "nearest",
    "pass_at_k",
    "pass_at_k_unbiased",
    "return_to_go",
    "scheduled_beta",
    "top_fraction_threshold",
    "validate",
    "window_counts",
]


def __getattr__(name: str) -> object:
    """Import a function of tensors, and torch with it, when it is first asked for."""
    if name not in MODULE_OF_TENSOR_FUNCTION:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    value = getattr(import_module(MODULE_OF_TENSOR_FUNCTION[name]), name)
    globals()[name] = value
    return value
