"""Parameters, rules and needs that more than one registry entry declares. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rewards.parameters import Parameter, Params, Rule
from rewards.registry import Needs


def low_is_below_high(params: Mapping[str, Any]) -> bool:
    """Return whether the interval [low, high] has a width."""
    return params["low"] < params["high"]


def beta_falls_or_is_below_one(params: Mapping[str, Any]) -> bool:
    """Return whether Veto has a finite optimum in the end: beta 1 or more is for the start of a schedule."""
    start = params["beta_start"] if params["beta"] is None else params["beta"]
    return params["schedule"] != "constant" or start < 1.0


def finite_teacher_without_floor(params: Params, needs: Needs) -> Needs:
    """Return the needs of an unbounded reward: a floor gives it a value at a teacher log-prob of -inf."""
    return replace(needs, finite_teacher=params["logprob_floor"] is None)


NOTHING = Needs(teacher=())
BEHAVIOUR = Needs(teacher=(), behaviour=True)

LOW_BELOW_HIGH = Rule("low", "be < high", low_is_below_high)

LOGPROB_FLOOR = Parameter("logprob_floor", float, None, "Lowest log-prob; none: drop infinite rewards.", below=0)

POWER_PARAMETERS = (
    Parameter("alpha", float, 5.0, "Exponent: a large one looks at likely tokens only.", above=0, at_most=1000),
    Parameter(
        "rescale",
        str,
        "none",
        "inv_alpha divides by alpha, so that alpha -> 0 gives the log-ratio.",
        choices=("none", "inv_alpha"),
    ),
)

VETO_PARAMETERS = (
    Parameter("beta", float, None, "Short for beta_start.", at_least=0, at_most=1.5),
    Parameter("beta_start", float, 0.8, "Pull of the student on its target at step 0.", at_least=0, at_most=1.5),
    Parameter("beta_end", float, 0.0, "The same at the last step.", at_least=0, at_most=1.5),
    Parameter(
        "schedule",
        str,
        "linear",
        "linear moves from start to end over the run, constant stays at the start.",
        choices=("linear", "constant"),
    ),
)

VETO_RULES = (Rule("beta_start", "be < 1 with schedule constant", beta_falls_or_is_below_one),)

STEP_EXTRAS = ("step", "max_steps")

REOPOLD_PARAMETERS = (
    Parameter(
        "lambda_", float, 0.3, "Share of the student in the relaxed teacher; sets the floor.", above=0, below=1
    ),
    Parameter("entropy_top", float, 0.2, "Share of tokens trained on from switch_step on.", above=0, at_most=1),
    Parameter("switch_step", int, 500, "Step from which entropy chooses the tokens.", at_least=0),
)

EOPD_PARAMETERS = (
    Parameter("alpha", float, 1.0, "Weight of the forward KL.", at_least=0),
    Parameter("tau", float, 0.8, "Teacher entropy in nats above which it is added.", at_least=0),
    Parameter("k", int, 16, "Teacher tokens of the forward KL.", at_least=1),
)

AOPD_PARAMETERS = (
    Parameter(
        "tau",
        float,
        0.0,
        "Tokens with p_teacher - p_student up to this get the forward KL: -1 none, 1 all.",
        at_least=-1,
        at_most=1,
    ),
    Parameter("k", int, 16, "Teacher tokens of the forward KL.", at_least=1),
)
