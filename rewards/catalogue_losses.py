"""From rewards to a loss: normalisers, surrogates and aggregations. No torch."""

from __future__ import annotations

from rewards.parameters import Parameter
from rewards.registry import BEHAVIOUR, NOTHING, Entry, Needs, NormaliserEntry, by_name

NORMALISERS: dict[str, NormaliserEntry] = by_name(
    NormaliserEntry(
        name="none",
        doc="The reward as it is.",
        statistics_source="rewards.normalisers:no_statistics",
        apply_source="rewards.normalisers:apply_none",
        reduction="sum",
        uses_window_statistics=False,
    ),
    NormaliserEntry(
        name="zscore",
        doc="(reward - mean) / population standard deviation of the window.",
        statistics_source="rewards.normalisers:zscore_statistics",
        apply_source="rewards.normalisers:apply_zscore",
        reduction="sum",
    ),
    NormaliserEntry(
        name="sign_max_abs",
        doc="Positive rewards over the largest one, negative rewards over the largest negative size.",
        statistics_source="rewards.normalisers:sign_max_abs_statistics",
        apply_source="rewards.normalisers:apply_sign_max_abs",
        reduction="max",
    ),
)

EPS = Parameter(
    "eps", float, 0.2, "Half the width of the interval that the ratio is clipped to.", above=0, below=1
)
C = Parameter("c", float, None, "Dual clip: a negative advantage costs at most c times its size.", above=1)

SURROGATES: dict[str, Entry] = by_name(
    Entry(
        name="policy_gradient",
        doc="-advantage * logp.",
        source="rewards.surrogates:policy_gradient",
        needs=NOTHING,
    ),
    Entry(
        name="unclipped",
        doc="-ratio * advantage, differentiated through the ratio: AsyncOPD.",
        source="rewards.surrogates:unclipped",
        needs=BEHAVIOUR,
        extras=("behaviour_logp_BT",),
    ),
    Entry(
        name="ppo",
        doc="PPO's clipped loss against the behaviour policy.",
        source="rewards.surrogates:ppo",
        needs=BEHAVIOUR,
        parameters=(EPS, C),
        extras=("behaviour_logp_BT",),
    ),
    Entry(
        name="decoupled_ppo",
        doc="PPO's clipped loss against the proximal policy, weighted by proximal over behaviour.",
        source="rewards.surrogates:decoupled_ppo",
        needs=Needs(teacher=(), behaviour=True, proximal=True),
        parameters=(
            EPS,
            Parameter("cap", float, 5.0, "Largest weight that counts; tokens above it are dropped.", above=0),
            C,
        ),
        extras=("behaviour_logp_BT", "proximal_logp_BT"),
    ),
    Entry(
        name="dppo",
        doc="The unclipped loss of tokens whose probability has not yet moved too far.",
        source="rewards.surrogates:dppo",
        needs=BEHAVIOUR,
        parameters=(
            Parameter("low", float, 0.2, "Fall of the probability that ends a negative advantage.", above=0),
            Parameter("high", float, 0.2, "Rise of the probability that ends a positive advantage.", above=0),
        ),
        extras=("behaviour_logp_BT",),
    ),
)

AGGREGATIONS: dict[str, str] = {
    "window_token_mean": "Sum over tokens / tokens of the window: independent of how the window is split.",
    "seq_mean_token_mean": "Mean over responses of each response's token mean.",
    "seq_mean_token_sum": "Mean over responses of each response's token sum.",
}
