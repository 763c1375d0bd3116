"""What multiplies or removes a token's reward: importance weights, token weights, token masks. No torch."""

from __future__ import annotations

from dataclasses import replace

from rewards.catalogue_rewards import TOKEN_REWARDS
from rewards.parameters import LOW_BELOW_HIGH, Parameter
from rewards.registry import BEHAVIOUR, NOTHING, Entry, Needs, by_name

TRUNCATED = Entry(
    name="truncated",
    doc="The importance ratio exp(logp - behaviour_logp), clipped to [low, high].",
    source="rewards.importance:truncated_weight",
    needs=BEHAVIOUR,
    is_bounded=True,
    parameters=(
        Parameter("low", float, 0.0, "Smallest weight.", at_least=0),
        Parameter("high", float, 2.0, "Largest weight; lower means less variance, more bias.", above=0),
    ),
    rules=(LOW_BELOW_HIGH,),
)

IMPORTANCE_WEIGHTS: dict[str, Entry] = by_name(
    Entry(
        name="none",
        doc="Weight 1: no correction of staleness or engine mismatch.",
        source="rewards.importance:unit_weight",
        needs=NOTHING,
        is_bounded=True,
    ),
    TRUNCATED,
    replace(TRUNCATED, name="tis", doc="Another name of truncated."),
    Entry(
        name="icepop",
        doc="The importance ratio where it lies in [low, high], 0 elsewhere.",
        source="rewards.importance:icepop_weight",
        needs=BEHAVIOUR,
        is_bounded=True,
        parameters=(
            Parameter("low", float, 0.5, "Smallest ratio that counts.", at_least=0),
            Parameter("high", float, 2.0, "Largest ratio that counts.", above=0),
        ),
        rules=(LOW_BELOW_HIGH,),
    ),
    Entry(
        name="unclipped",
        doc="The importance ratio as it is.",
        source="rewards.importance:unclipped_weight",
        needs=BEHAVIOUR,
    ),
    Entry(
        name="decoupled",
        doc="exp(proximal_logp - behaviour_logp), 0 above the cap: for a surrogate against the proximal policy.",
        source="rewards.importance:decoupled_weight",
        needs=Needs(teacher=(), behaviour=True, proximal=True),
        is_bounded=True,
        parameters=(Parameter("cap", float, 5.0, "Largest ratio that counts.", above=0),),
        extras=("proximal_logp_BT",),
    ),
    Entry(
        name="sequence",
        doc="The ratio of the whole response, at most cap.",
        source="rewards.importance:sequence_weight",
        needs=BEHAVIOUR,
        is_bounded=True,
        parameters=(Parameter("cap", float, 2.0, "Largest weight.", above=0),),
    ),
    Entry(
        name="sequence_mask",
        doc="The ratio of the whole response, 0 above the cap.",
        source="rewards.importance:sequence_mask",
        needs=BEHAVIOUR,
        is_bounded=True,
        parameters=(Parameter("cap", float, 3.0, "Largest ratio that counts.", above=0),),
    ),
    Entry(
        name="geometric_mask",
        doc="1 for responses whose geometric mean ratio lies in [low, high], 0 for others.",
        source="rewards.importance:geometric_mask",
        needs=BEHAVIOUR,
        is_bounded=True,
        parameters=(
            Parameter("low", float, 0.999, "Smallest mean ratio.", at_least=0),
            Parameter("high", float, 1.001, "Largest mean ratio.", above=0),
        ),
        rules=(LOW_BELOW_HIGH,),
    ),
    Entry(
        name="k3_mask",
        doc="1 for responses with a mean of ratio - log ratio - 1 up to high, 0 for others.",
        source="rewards.importance:k3_mask",
        needs=BEHAVIOUR,
        is_bounded=True,
        parameters=(Parameter("high", float, 0.1, "Largest mean.", above=0),),
    ),
)

TOKEN_WEIGHTS: dict[str, Entry] = by_name(
    Entry(
        name="iw_opd",
        doc="More weight to earlier tokens: IW-OPD.",
        source="rewards.token_weights:iw_opd_weight",
        needs=Needs(behaviour=True),
        is_bounded=True,
        parameters=(
            Parameter("gamma", float, 0.5, "Extra weight of a token with nothing before it.", at_least=0),
        ),
        extras=("advantage_BT",),
    ),
    Entry(
        name="fire_opd",
        doc="More weight where the teacher is sure and the student is not: FiRe-OPD.",
        source="rewards.token_weights:fire_opd_weight",
        needs=Needs(teacher=("token", "full"), student=("entropy",)),
        parameters=(
            Parameter("alpha", float, 1.0, "Influence of the teacher's entropy.", at_least=0),
            Parameter("beta", float, 1.0, "Influence of the student's entropy.", at_least=0),
        ),
        extras=("teacher_entropy_BT", "student_entropy_BT"),
    ),
)

TOKEN_MASKS: dict[str, Entry] = by_name(
    Entry(
        name="special_tokens",
        doc="Without the first occurrence of each special token in a response.",
        source="rewards.masks:special_token_mask",
        needs=NOTHING,
        extras=("response_ids_BT", "special_token_ids"),
    ),
    Entry(
        name="truncated",
        doc="Without the responses that were cut off at the length limit.",
        source="rewards.masks:truncated_mask",
        needs=NOTHING,
        extras=("is_truncated_B",),
    ),
    Entry(
        name="entropy_top",
        doc="The tokens with the highest student entropy.",
        source="rewards.masks:entropy_top_mask",
        needs=Needs(teacher=(), student=("entropy",)),
        parameters=(Parameter("top_fraction", float, 0.2, "Share of tokens kept.", above=0, at_most=1),),
        extras=("student_entropy_BT", "entropy_threshold"),
    ),
    Entry(
        name="reopold",
        doc="Tokens above the floor before switch_step, those of the highest student entropy afterwards.",
        source="rewards.reopold:reopold_mask",
        needs=Needs(student=("token", "entropy")),
        parameters=TOKEN_REWARDS["reopold"].parameters,
        extras=("teacher_logp_BT", "student_logp_BT", "step", "student_entropy_BT", "entropy_threshold"),
    ),
    Entry(
        name="fire_opd",
        doc="Without the responses that the teacher finds least likely.",
        source="rewards.masks:fire_opd_mask",
        parameters=(Parameter("lowest_quantile", float, 0.2, "Share of responses dropped.", at_least=0, below=1),),
        extras=("teacher_logp_BT",),
    ),
    Entry(
        name="tip",
        doc="The tokens with the highest entropy or the largest distance from the teacher.",
        source="rewards.tip:tip_mask",
        needs=Needs(teacher=("full",), student=("entropy", "logits")),
        parameters=(Parameter("keep", float, 0.5, "Share of tokens kept.", above=0, at_most=1),),
        extras=("student_entropy_BT", "reverse_kl_BT"),
    ),
)
