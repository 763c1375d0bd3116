"""Scores -> reward: token rewards, divergences, normalisers and importance weights, looked up by name.

    TOKEN_REWARDS[name](teacher_logp_BT, student_logp_BT, response_mask_BT, **params) -> reward_BT
    DIVERGENCES[name](student_logits_NV, teacher, **params) -> value_N
    NORMALISERS[name](reward_BT, response_mask_BT) -> reward_BT
    IMPORTANCE_WEIGHTS[name](logp_BT, behaviour_logp_BT, response_mask_BT, **params) -> weight_BT
    aggregate(loss_BT, response_mask_BT, how=..., num_tokens=None) -> scalar

Importing this package does not import torch: names, parameters and needs are plain data that the command line
checks before anything heavy is loaded. A function of tensors is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rewards.accuracy import avg_at_k, pass_at_k
from rewards.catalogue import (
    AGGREGATIONS,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    NORMALISERS,
    OBJECTIVES,
    TOKEN_REWARDS,
    lookup,
    validate,
)
from rewards.outcome import grade_batch
from rewards.parameters import Parameter, Params, Rule, check_name
from rewards.registry import Entry, Needs, NormaliserEntry
from rewards.teacher import TeacherLogits, TeacherTopK

if TYPE_CHECKING:
    from rewards.aggregation import aggregate, window_counts
    from rewards.finite import FiniteReward, drop_non_finite

MODULE_OF_TENSOR_FUNCTION = {
    "aggregate": "rewards.aggregation",
    "window_counts": "rewards.aggregation",
    "FiniteReward": "rewards.finite",
    "drop_non_finite": "rewards.finite",
}

__all__ = [
    "AGGREGATIONS",
    "DIVERGENCES",
    "IMPORTANCE_WEIGHTS",
    "NORMALISERS",
    "OBJECTIVES",
    "TOKEN_REWARDS",
    "Entry",
    "FiniteReward",
    "Needs",
    "NormaliserEntry",
    "Parameter",
    "Params",
    "Rule",
    "TeacherLogits",
    "TeacherTopK",
    "aggregate",
    "avg_at_k",
    "check_name",
    "drop_non_finite",
    "grade_batch",
    "lookup",
    "pass_at_k",
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
