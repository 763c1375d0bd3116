"""Rewards of sampled tokens: name, parameters, needs. No torch."""

from __future__ import annotations

from dataclasses import replace

from rewards.parameters import Parameter, Params
from rewards.registry import Entry, Needs, by_name
from rewards.shared_parameters import (
    AOPD_PARAMETERS,
    EOPD_PARAMETERS,
    LOGPROB_FLOOR,
    LOW_BELOW_HIGH,
    POWER_PARAMETERS,
    REOPOLD_PARAMETERS,
    STEP_EXTRAS,
    VETO_PARAMETERS,
    VETO_RULES,
    finite_teacher_without_floor,
)


def opd_plus_needs(params: Params, needs: Needs) -> Needs:
    """Only the reverse KL has no value at a teacher log-prob of -inf, unless the log-ratio is bounded."""
    is_infinite = params["divergence"] == "rkl" and params["log_ratio_bound"] is None
    return replace(needs, finite_teacher=is_infinite)


def aopd_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: with tau >= 0 the log-ratio is not used where the teacher rules a token out."""
    tau = params["tau"]
    return replace(needs, finite_teacher=isinstance(tau, float) and tau < 0.0)


TOKEN_REWARDS: dict[str, Entry] = by_name(
    Entry(
        name="log_ratio",
        doc="teacher_logp - student_logp: on-policy distillation without a bound.",
        source="rewards.log_ratio:log_ratio",
        needs=Needs(finite_teacher=True),
        parameters=(LOGPROB_FLOOR,),
        refine_needs=finite_teacher_without_floor,
    ),
    Entry(
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
    Entry(
        name="log_tanh",
        doc="tanh(log-ratio / temperature).",
        source="rewards.log_ratio:log_tanh",
        is_bounded=True,
        parameters=(Parameter("temperature", float, 5.0, "Log-ratio at which the reward bends.", above=0),),
    ),
    Entry(
        name="power",
        doc="p_teacher**alpha - p_student**alpha: PowerOPD, bounded by 1.",
        source="rewards.power:power_reward",
        is_bounded=True,
        parameters=POWER_PARAMETERS,
    ),
    Entry(
        name="veto_reverse",
        doc="teacher_logp - (1 - beta) * student_logp: Veto's reverse KL from sampled tokens.",
        source="rewards.veto:veto_reverse",
        needs=Needs(finite_teacher=True),
        parameters=(*VETO_PARAMETERS, LOGPROB_FLOOR),
        rules=VETO_RULES,
        extras=STEP_EXTRAS,
        refine_needs=finite_teacher_without_floor,
    ),
    Entry(
        name="veto",
        doc="The sampled half of the objective veto: its reverse direction.",
        source="rewards.veto:veto_reverse",
        needs=Needs(finite_teacher=True),
        parameters=(
            *VETO_PARAMETERS,
            Parameter("direction", str, "reverse", "The one that can be sampled.", choices=("reverse",)),
        ),
        rules=VETO_RULES,
        extras=STEP_EXTRAS,
    ),
    Entry(
        name="reopold",
        doc="The log-ratio with the floor log(lambda) / (1 - lambda), on a part of the tokens.",
        source="rewards.reopold:reopold_reward",
        needs=Needs(student=("token", "entropy")),
        parameters=REOPOLD_PARAMETERS,
        token_mask="reopold",
    ),
    Entry(
        name="opd_plus",
        doc="The exact policy gradient of an f-divergence, u * f'(u) - f(u), or the naive -f(u).",
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
        source="rewards.log_ratio:g_opd_reward",
        needs=Needs(reference=True, finite_teacher=True),
        parameters=(
            Parameter("lambda_", float, 1.25, "Weight of the teacher; 1 is the log-ratio.", at_least=0),
            LOGPROB_FLOOR,
        ),
        extras=("reference_logp_BT",),
        refine_needs=finite_teacher_without_floor,
    ),
    Entry(
        name="eopd",
        doc="The log-ratio; the divergence of the same name is added where the teacher is uncertain.",
        source="rewards.eopd:eopd_reward",
        needs=Needs("pg+direct", teacher=("token", "topk"), student=("token", "logits"), finite_teacher=True),
        parameters=EOPD_PARAMETERS,
    ),
    Entry(
        name="aopd",
        doc="The log-ratio where the teacher likes the token better; the divergence of the same name elsewhere.",
        source="rewards.aopd:aopd_reward",
        needs=Needs("pg+direct", teacher=("token", "topk"), student=("token", "logits")),
        parameters=AOPD_PARAMETERS,
        refine_needs=aopd_needs,
    ),
)
