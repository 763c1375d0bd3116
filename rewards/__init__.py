"""Scores of sampled tokens -> rewards -> loss: pure functions of tensors, looked up by name.

In come log-probs or logits of student and teacher with a response mask; out come a reward, weight, mask or loss
per token. Only divergences and surrogates carry gradient. Start with `rewards.catalogue` (what there is and what
it takes) and `rewards.registry` (what an entry is); `rewards.grading` says whether an answer is right.

Importing this package does not import torch: the command line checks names and parameters before anything heavy
is loaded. A function of tensors is imported when it is first used.
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
from rewards.grading.extraction import Grader, extract_answer
from rewards.grading.outcome import (
    Graded,
    Verdict,
    compare_answers,
    equality_classes,
    grade_batch,
    grade_responses,
    grade_verdicts,
)
from rewards.parameters import Parameter, Params, Rule, check_name, nearest
from rewards.registry import Entry, Needs, NormaliserEntry

if TYPE_CHECKING:
    from rewards.advantages import group_advantage, mix_outcome, return_to_go
    from rewards.aggregation import aggregate, window_counts
    from rewards.log_probs import FiniteReward, drop_non_finite
    from rewards.masks import top_fraction_threshold
    from rewards.teacher import Teacher, TeacherLogits, TeacherTopK
    from rewards.veto import scheduled_beta

OF_TENSORS = {
    "rewards.advantages": ("group_advantage", "mix_outcome", "return_to_go"),
    "rewards.aggregation": ("aggregate", "window_counts"),
    "rewards.log_probs": ("FiniteReward", "drop_non_finite"),
    "rewards.masks": ("top_fraction_threshold",),
    "rewards.teacher": ("Teacher", "TeacherLogits", "TeacherTopK"),
    "rewards.veto": ("scheduled_beta",),
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
    "Graded",
    "Grader",
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
    "grade_responses",
    "grade_verdicts",
    "group_advantage",
    "lookup",
    "maj_at_k",
    "mix_outcome",
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
    """Import what works on tensors, and torch with it, when it is first asked for."""
    module = next((module for module, names in OF_TENSORS.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
