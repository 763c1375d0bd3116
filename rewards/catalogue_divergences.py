"""Divergences per position, differentiated themselves, and baselines: name, formula, parameters, needs. No torch.

In formulas `p` and `t` are the distributions of student and teacher at a position, and `v` is a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rewards.catalogue_rewards import (
    POWER_PARAMETERS,
    STEP_EXTRAS,
    TOKEN_REWARDS,
    VETO_PARAMETERS,
    VETO_RULES,
    veto_reverse_needs,
)
from rewards.parameters import Parameter, Params
from rewards.registry import Entry, Needs, by_name

FULL = Needs(form="direct", teacher=("full",), student=("logits",))
TOP_K = Needs(form="direct", teacher=("topk",), student=("logits",))

TeacherNeeds = tuple[Literal["token", "topk", "ids_query", "full"], ...]

TEACHER_OF_SUPPORT: dict[object, TeacherNeeds] = {
    "teacher": ("topk",),
    "teacher+sampled": ("topk", "token"),
    "student": ("ids_query",),
    "union": ("full",),
}


def lsm_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: the support decides who is asked for which tokens."""
    return replace(needs, teacher=TEACHER_OF_SUPPORT[params["support"]])


def veto_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: the reverse direction is exact in expectation from sampled tokens."""
    return needs if params["direction"] == "forward" else veto_reverse_needs(params, Needs())


def log_ratio_baseline_needs(params: Params, needs: Needs) -> Needs:
    """Return the needs: over k tokens, a teacher that answers for the student's tokens is enough."""
    return needs if params["k"] is None else replace(needs, teacher=("ids_query",))


VETO = Entry(
    name="veto",
    doc="KL to softmax(log t + beta * log p): forward from distributions, reverse from sampled tokens.",
    formula="KL(Q || p) or KL(p || Q), Q = softmax(log t + beta [log p]), [] without gradient",
    source="rewards.veto:veto",
    needs=FULL,
    parameters=(
        *VETO_PARAMETERS,
        Parameter(
            "direction",
            str,
            "forward",
            "forward: KL(target || student). reverse: KL(student || target).",
            choices=("forward", "reverse"),
        ),
    ),
    rules=VETO_RULES,
    extras=STEP_EXTRAS,
    refine_needs=veto_needs,
)

DIVERGENCES: dict[str, Entry] = by_name(
    Entry(
        name="reverse_kl",
        doc="KL(student || teacher).",
        formula="sum_v p_v (log p_v - log t_v)",
        source="rewards.kl:reverse_kl",
        needs=FULL,
    ),
    Entry(
        name="forward_kl",
        doc="KL(teacher || student).",
        formula="sum_v t_v (log t_v - log p_v)",
        source="rewards.kl:forward_kl",
        needs=FULL,
    ),
    Entry(
        name="linear_kl",
        doc="beta * reverse KL + (1 - beta) * forward KL.",
        formula="beta KL(p || t) + (1 - beta) KL(t || p)",
        source="rewards.kl:linear_kl",
        needs=FULL,
        parameters=(Parameter("beta", float, 0.5, "Weight of the reverse KL.", at_least=0, at_most=1),),
    ),
    Entry(
        name="jsd",
        doc="The generalised Jensen-Shannon divergence of GKD.",
        formula="beta KL(t || m) + (1 - beta) KL(p || m), m = beta t + (1 - beta) p",
        source="rewards.kl:jsd",
        needs=FULL,
        parameters=(
            Parameter("beta", float, 1.0, "0: forward KL, 1: reverse KL.", at_least=0, at_most=1),
            Parameter("temperature", float, 1.0, "Divides the logits of both sides.", above=0),
        ),
    ),
    Entry(
        name="power_full",
        doc="The divergence that the reward power descends in expectation, over the whole vocabulary.",
        formula="sum_v [p_v**(1+alpha) - (1+alpha) p_v t_v**alpha + alpha t_v**(1+alpha)] / (1+alpha)",
        source="rewards.power:power_full",
        needs=FULL,
        is_bounded=True,
        parameters=POWER_PARAMETERS,
    ),
    Entry(
        name="lsm",
        doc="KL over the teacher's top k tokens: local support matching.",
        formula="KL(p~ || t~), both normalised over the support",
        source="rewards.lsm:lsm",
        needs=TOP_K,
        parameters=(
            Parameter("k", int, 32, "Tokens of the support; a vLLM teacher needs max_logprobs >= k.", at_least=2),
            Parameter("direction", str, "reverse", "Of the KL.", choices=("reverse", "forward")),
            Parameter("normalise", bool, True, "Both sides sum to 1 over the support; false is unstable."),
            Parameter("tail", str, "none", "bucket: the rest counts as one token.", choices=("none", "bucket")),
            Parameter(
                "support",
                str,
                "teacher",
                "Whose top k tokens.",
                choices=("teacher", "teacher+sampled", "student", "union"),
            ),
        ),
        extras=("sampled_ids_N", "sampled_teacher_logp_N"),
        refine_needs=lsm_needs,
    ),
    Entry(
        name="top_k_forward_kl",
        doc="KL from the teacher, renormalised over its top k, to the student's full softmax.",
        formula="KL(t~ || p), t~ normalised over the teacher's top k",
        source="rewards.support:top_k_forward_kl",
        needs=TOP_K,
        parameters=(Parameter("k", int, 16, "Teacher tokens.", at_least=1),),
    ),
    Entry(
        name="student_top_k",
        doc="Policy gradient of the log-ratio over the student's top k tokens at once.",
        formula="-sum_v [p~_v (log t_v - log p_v)] log p_v over the student's top k, [] without gradient",
        source="rewards.support:student_top_k",
        needs=Needs(form="direct", teacher=("ids_query",), student=("logits",)),
        parameters=(Parameter("k", int, 16, "Student tokens.", at_least=1),),
    ),
    VETO,
    replace(
        VETO,
        name="veto_full",
        doc="Veto from distributions in both directions.",
        refine_needs=None,
    ),
    replace(
        TOKEN_REWARDS["eopd"],
        doc="The log-ratio, and a forward KL over top k tokens where the teacher is uncertain.",
        formula="alpha KL(t~ || p) where the teacher's entropy is above tau, besides the reward",
        source="rewards.gated:eopd_divergence",
        extras=("teacher_entropy_N",),
    ),
    replace(
        TOKEN_REWARDS["aopd"],
        doc="The log-ratio where the teacher likes the token better, a forward KL over top k tokens elsewhere.",
        formula="KL(t~ || p) where t(y) - p(y) <= tau, besides the reward",
        source="rewards.gated:aopd_divergence",
        extras=("sampled_ids_N", "sampled_teacher_logp_N"),
    ),
)

BASELINES: dict[str, Entry] = by_name(
    Entry(
        name="power",
        doc="The power reward that the student expects.",
        source="rewards.baselines:power_baseline",
        needs=FULL,
        is_bounded=True,
        parameters=POWER_PARAMETERS,
    ),
    Entry(
        name="log_ratio",
        doc="The log-ratio that the student expects, minus the reverse KL: vOPD.",
        source="rewards.baselines:log_ratio_baseline",
        needs=FULL,
        parameters=(Parameter("k", int, None, "Renormalised over the student's top k; none: exact.", at_least=1),),
        refine_needs=log_ratio_baseline_needs,
    ),
    Entry(
        name="veto_reverse",
        doc="The reward of veto_reverse that the student expects.",
        source="rewards.baselines:veto_reverse_baseline",
        needs=FULL,
        parameters=VETO_PARAMETERS,
        rules=VETO_RULES,
        extras=STEP_EXTRAS,
    ),
)
