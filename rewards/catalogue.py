"""Every objective, normaliser and importance weight: its name, what it needs, how it is configured. No torch.

To add one: write its function in a file of its own and declare it here. No user of the registries changes.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Literal

from rewards.parameters import Parameter, Params, Rule, check_name
from rewards.registry import Entry, Needs, NormaliserEntry


def low_is_below_high(params: Mapping[str, Any]) -> bool:
    """Return whether the interval [low, high] has a width."""
    return params["low"] < params["high"]


LOW_BELOW_HIGH = Rule("low", "be < high", low_is_below_high)

TOKEN_REWARDS: dict[str, Entry] = {
    "log_ratio": Entry(
        name="log_ratio",
        doc="teacher_logp - student_logp: on-policy distillation without a bound.",
        source="rewards.log_ratio:log_ratio",
        parameters=(
            Parameter("logprob_floor", float, None, "Lowest log-prob; none: drop infinite rewards.", below=0),
        ),
    ),
    "log_clip": Entry(
        name="log_clip",
        doc="The log-ratio, clipped to [low, high].",
        source="rewards.log_ratio:log_clip",
        is_bounded=True,
        parameters=(
            Parameter("low", float, -1.0, "Lowest reward."),
            Parameter("high", float, 1.0, "Highest reward."),
        ),
        rules=(LOW_BELOW_HIGH,),
    ),
    "log_tanh": Entry(
        name="log_tanh",
        doc="tanh(log-ratio / temperature).",
        source="rewards.log_ratio:log_tanh",
        is_bounded=True,
        parameters=(Parameter("temperature", float, 5.0, "Log-ratio at which the reward bends.", above=0),),
    ),
    "power": Entry(
        name="power",
        doc="p_teacher**alpha - p_student**alpha: PowerOPD, bounded by 1.",
        source="rewards.power:power_reward",
        is_bounded=True,
        parameters=(
            Parameter(
                "alpha",
                float,
                5.0,
                "Exponent: a large one looks at likely tokens only.",
                above=0,
                at_most=1000,
            ),
            Parameter(
                "rescale",
                str,
                "none",
                "inv_alpha divides by alpha, so that alpha -> 0 gives the log-ratio.",
                choices=("none", "inv_alpha"),
            ),
        ),
    ),
}

DIVERGENCES: dict[str, Entry] = {}

OBJECTIVES: Mapping[str, Entry] = ChainMap(TOKEN_REWARDS, DIVERGENCES)
"""Both kinds by name; an objective with a reward and a divergence stands in both under one name."""

NORMALISERS: dict[str, NormaliserEntry] = {
    "none": NormaliserEntry(
        name="none",
        doc="The reward as it is.",
        statistics_source="rewards.normalisers:no_statistics",
        apply_source="rewards.normalisers:apply_none",
        reduction="sum",
        uses_window_statistics=False,
    ),
    "zscore": NormaliserEntry(
        name="zscore",
        doc="(reward - mean) / population standard deviation of the window.",
        statistics_source="rewards.normalisers:zscore_statistics",
        apply_source="rewards.normalisers:apply_zscore",
        reduction="sum",
    ),
    "sign_max_abs": NormaliserEntry(
        name="sign_max_abs",
        doc="Positive rewards over the largest one, negative rewards over the largest negative size.",
        statistics_source="rewards.normalisers:sign_max_abs_statistics",
        apply_source="rewards.normalisers:apply_sign_max_abs",
        reduction="max",
    ),
}

IMPORTANCE_WEIGHTS: dict[str, Entry] = {
    "none": Entry(
        name="none",
        doc="Weight 1: no correction of staleness or engine mismatch.",
        source="rewards.importance:unit_weight",
        needs=Needs(teacher=()),
        is_bounded=True,
    ),
    "truncated": Entry(
        name="truncated",
        doc="The importance ratio exp(logp - behaviour_logp), clipped to [low, high].",
        source="rewards.importance:truncated_weight",
        needs=Needs(teacher=(), behaviour=True),
        is_bounded=True,
        parameters=(
            Parameter("low", float, 0.0, "Smallest weight.", at_least=0),
            Parameter("high", float, 2.0, "Largest weight; lower means less variance, more bias.", above=0),
        ),
        rules=(LOW_BELOW_HIGH,),
    ),
}

AGGREGATIONS: dict[str, str] = {
    "window_token_mean": "Sum over tokens / tokens of the window: independent of how the window is split.",
    "seq_mean_token_mean": "Mean over responses of each response's token mean.",
    "seq_mean_token_sum": "Mean over responses of each response's token sum.",
}

Kind = Literal["objective", "normaliser", "importance"]

REGISTRIES: dict[Kind, Mapping[str, Entry] | Mapping[str, NormaliserEntry]] = {
    "objective": OBJECTIVES,
    "normaliser": NORMALISERS,
    "importance": IMPORTANCE_WEIGHTS,
}


def lookup(kind: Kind, name: str, *, field: str | None = None) -> Entry | NormaliserEntry:
    """Return the entry called `name`, or raise a ValueError that names the nearest one.

    `field` is what the user's configuration calls this section; by default, the kind.
    """
    registry = REGISTRIES[kind]
    check_name(f"{field or kind}.name", name, registry)
    return registry[name]


def validate(kind: Kind, name: str, params: Mapping[str, object], *, field: str | None = None) -> Params:
    """Return every parameter of the named entry, checked and completed with defaults.

    >>> validate("objective", "power", {"alpha": 0})
    ValueError: objective.alpha must be > 0 and <= 1000, got 0
    """
    return lookup(kind, name, field=field).validate(params, field=field or kind)
