"""Rewards of sampled tokens: name, formula, parameters, needs. No torch.

In formulas `p` and `t` are the probabilities of student and teacher at a position, and `y` is the sampled token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rewards.parameters import LOW_BELOW_HIGH, Parameter, Params, Rule
from rewards.registry import Entry, Needs, by_name

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

LOGPROB_FLOOR = Parameter("logprob_floor", float, None, "Lowest log-prob; none: drop infinite rewards.", below=0)
TEACHER_TOKENS = Parameter("k", int, 16, "Teacher tokens of the forward KL.", at_least=1)
STEP_EXTRAS = ("step", "max_steps")


def beta_falls_or_is_below_one(params: Mapping[str, Any]) -> bool:
    """Return whether Veto has a finite optimum in the end: beta 1 or more is for the start of a schedule."""
    start = params["beta_start"] if params["beta"] is None else params["beta"]
    return params["schedule"] != "constant" or start < 1.0


VETO_RULES = (Rule("beta_start", "be < 1 with schedule constant", beta_falls_or_is_below_one),)


def finite_teacher_without_floor(params: Params, needs: Needs) -> Needs:
    """Return the needs of an unbounded reward: a floor gives it a value at a teacher log-prob of -inf."""
    return replace(needs, finite_teacher=params["logprob_floor"] is None)


def log_clip_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: an interval without 0 rewards every token."""
    low, high = params["low"], params["high"]
    assert isinstance(low, float), low
    assert isinstance(high, float), high
    return replace(needs, full_softmax=not low <= 0.0 <= high)


def veto_reverse_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: with a pull on the target, the reward of a teacher that agrees is beta * log p."""
    betas = [params["beta_start"] if params["beta"] is None else params["beta"]]
    betas += [params["beta_end"]] if params["schedule"] == "linear" else []
    is_finite = params.get("logprob_floor") is None
    return replace(needs, finite_teacher=is_finite, full_softmax=any(betas))


def g_opd_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: away from the reference, the reward of a teacher that agrees is not 0."""
    return replace(finite_teacher_without_floor(params, needs), full_softmax=params["lambda_"] != 1.0)


def opd_plus_needs(params: Params, needs: Needs) -> Needs:
    """Only the reverse KL has no value at a teacher log-prob of -inf, unless the log-ratio is bounded.

    The exact rewards of both KLs are 1 and -1 at u = 1: constants that only the full softmax cancels.
    """
    is_infinite = params["divergence"] == "rkl" and params["log_ratio_bound"] is None
    has_constant = params["divergence"] != "jsd" and not params["naive"]
    return replace(needs, finite_teacher=is_infinite, full_softmax=has_constant)


def aopd_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: with tau >= 0 the log-ratio is not used where the teacher rules a token out."""
    tau = params["tau"]
    return replace(needs, finite_teacher=isinstance(tau, float) and tau < 0.0)


TOKEN_REWARDS: dict[str, Entry] = by_name(
    Entry(
        name="log_ratio",
        doc="teacher_logp - student_logp: on-policy distillation without a bound.",
        formula="log t(y) - log p(y)",
        source="rewards.log_ratio:log_ratio",
        needs=Needs(finite_teacher=True),
        parameters=(LOGPROB_FLOOR,),
        refine_needs=finite_teacher_without_floor,
    ),
    Entry(
        name="log_clip",
        doc="The log-ratio, clipped to [low, high].",
        formula="min(max(log t(y) - log p(y), low), high)",
        source="rewards.log_ratio:log_clip",
        is_bounded=True,
        parameters=(
            Parameter("low", float, -1.0, "Lowest reward."),
            Parameter("high", float, 1.0, "Highest reward."),
        ),
        rules=(LOW_BELOW_HIGH,),
        refine_needs=log_clip_needs,
    ),
    Entry(
        name="log_tanh",
        doc="tanh(log-ratio / temperature).",
        formula="tanh((log t(y) - log p(y)) / temperature)",
        source="rewards.log_ratio:log_tanh",
        is_bounded=True,
        parameters=(Parameter("temperature", float, 5.0, "Log-ratio at which the reward bends.", above=0),),
    ),
    Entry(
        name="power",
        doc="p_teacher**alpha - p_student**alpha: PowerOPD, bounded by 1.",
        formula="t(y)**alpha - p(y)**alpha",
        source="rewards.power:power_reward",
        is_bounded=True,
        parameters=POWER_PARAMETERS,
    ),
    Entry(
        name="veto_reverse",
        doc="teacher_logp - (1 - beta) * student_logp: Veto's reverse KL from sampled tokens.",
        formula="log t(y) - (1 - beta) log p(y)",
        source="rewards.veto:veto_reverse",
        needs=Needs(finite_teacher=True),
        parameters=(*VETO_PARAMETERS, LOGPROB_FLOOR),
        rules=VETO_RULES,
        extras=STEP_EXTRAS,
        refine_needs=veto_reverse_needs,
    ),
    Entry(
        name="veto",
        doc="The sampled half of the objective veto: its reverse direction.",
        formula="log t(y) - (1 - beta) log p(y)",
        source="rewards.veto:veto_reverse",
        needs=Needs(finite_teacher=True),
        parameters=(
            *VETO_PARAMETERS,
            Parameter("direction", str, "reverse", "The one that can be sampled.", choices=("reverse",)),
        ),
        rules=VETO_RULES,
        extras=STEP_EXTRAS,
        refine_needs=veto_reverse_needs,
    ),
    Entry(
        name="reopold",
        doc="The log-ratio with the floor log(lambda) / (1 - lambda), on a part of the tokens.",
        formula="max(log t(y) - log p(y), log(lambda) / (1 - lambda))",
        source="rewards.reopold:reopold_reward",
        needs=Needs(student=("token", "entropy")),
        parameters=(
            Parameter(
                "lambda_",
                float,
                0.3,
                "Share of the student in the relaxed teacher; sets the floor.",
                above=0,
                below=1,
            ),
            Parameter(
                "entropy_top", float, 0.2, "Share of tokens trained on from switch_step on.", above=0, at_most=1
            ),
            Parameter("switch_step", int, 500, "Step from which entropy chooses the tokens.", at_least=0),
        ),
        token_mask="reopold",
    ),
    Entry(
        name="opd_plus",
        doc="The exact policy gradient of an f-divergence, u * f'(u) - f(u), or the naive -f(u).",
        formula="u f'(u) - f(u), u = t(y) / p(y)",
        source="rewards.opd_plus:opd_plus_reward",
        parameters=(
            Parameter("divergence", str, "jsd", "The f-divergence.", choices=("fkl", "rkl", "jsd")),
            Parameter("naive", bool, False, "True: -f(u), a different estimator."),
            Parameter("log_ratio_bound", float, None, "Largest size of the log-ratio.", above=0),
        ),
        refine_needs=opd_plus_needs,
    ),
    Entry(
        name="g_opd",
        doc="lambda * (teacher - reference) - (student - reference): above 1 it extrapolates.",
        formula="lambda (log t(y) - log q(y)) - (log p(y) - log q(y)), q the reference model",
        source="rewards.log_ratio:g_opd_reward",
        needs=Needs(reference=True, finite_teacher=True),
        parameters=(
            Parameter("lambda_", float, 1.25, "Weight of the teacher; 1 is the log-ratio.", at_least=0),
            LOGPROB_FLOOR,
        ),
        extras=("reference_logp_BT",),
        refine_needs=g_opd_needs,
    ),
    Entry(
        name="eopd",
        doc="The log-ratio; the divergence of the same name is added where the teacher is uncertain.",
        formula="log t(y) - log p(y)",
        source="rewards.gated:eopd_reward",
        needs=Needs("pg+direct", teacher=("token", "topk"), student=("token", "logits"), finite_teacher=True),
        parameters=(
            Parameter("alpha", float, 1.0, "Weight of the forward KL.", at_least=0),
            Parameter("tau", float, 0.8, "Teacher entropy in nats above which it is added.", at_least=0),
            TEACHER_TOKENS,
        ),
    ),
    Entry(
        name="aopd",
        doc="The log-ratio where the teacher likes the token better; the divergence of the same name elsewhere.",
        formula="log t(y) - log p(y) where t(y) - p(y) > tau, 0 elsewhere",
        source="rewards.gated:aopd_reward",
        needs=Needs("pg+direct", teacher=("token", "topk"), student=("token", "logits")),
        parameters=(
            Parameter(
                "tau",
                float,
                0.0,
                "Tokens with p_teacher - p_student up to this get the forward KL: -1 none, 1 all.",
                at_least=-1,
                at_most=1,
            ),
            TEACHER_TOKENS,
        ),
        refine_needs=aopd_needs,
    ),
)
