"""Sections of the configuration that choose and weigh tokens, and the loss that their advantages enter.

Keys of a section besides its own are the parameters of what it names; `rewards.validate` checks them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from settings.engine import (
    Rate,
    Section,
)


class NamedSection(BaseModel):
    """Base of sections with the parameters of one registry entry among their keys."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the named entry as given."""
        return dict(self.model_extra or {})


class MasksConfig(NamedSection):
    """Response tokens that are left out: they do not count in the loss's denominator. Keys besides these are the
    parameters of `selection`."""

    special_tokens: list[str] = []
    """Texts such as `<think>`: every token id of each is left out where it comes first in a response."""
    drop_truncated: bool = False
    """Leave out responses that were cut off at the length limit."""
    selection: Literal["none", "entropy_top", "tip", "fire_opd"] = "none"
    """Tokens chosen over the whole window. entropy_top: the share `top_fraction` (0.2) with the highest student
    entropy. tip: the share `keep` (0.5) that is uncertain or far from the teacher, who sends whole distributions
    then. fire_opd: all but the share `lowest_quantile` (0.2) of responses that the teacher finds least likely."""


class TokenWeightsConfig(NamedSection):
    """Weights that multiply the advantages of tokens. Keys besides `name` are their parameters."""

    name: Literal["none", "iw_opd", "fire_opd"] = "none"
    """iw_opd: more weight (`gamma`, 0.5) to earlier tokens. fire_opd: more weight where the teacher is sure
    (`alpha`, 1) and the student is not (`beta`, 1); the teacher sends whole distributions then."""


class SurrogateConfig(NamedSection):
    """The loss of a token's advantage. Keys besides `name` are its parameters (`eps`, `c`, `cap`, ...)."""

    name: str = "policy_gradient"
    """policy_gradient (-weight * advantage * logp, with the weight of `importance`), or a loss that corrects
    staleness by its own ratio, with `importance.name none`: unclipped, ppo, decoupled_ppo, dppo. With one gradient
    step per window, the proximal policy of decoupled_ppo is the current one: its ratio is 1, its gradient that of
    the policy gradient with `importance.name decoupled`."""


class ObjectiveConfig(NamedSection):
    """What is optimized. Keys besides these are the objective's own parameters (`alpha`, `low`, ...)."""

    name: str = "power"
    """Reward of each sampled token (power, log_ratio, log_clip, log_tanh, ...), or divergence of the two
    distributions (reverse_kl, forward_kl, jsd, lsm, ...), which decides what the teacher sends."""
    normaliser: str = "none"
    """Normalisation of rewards over the window: none, zscore, sign_max_abs."""
    discount: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A token is credited with the rewards that follow it in its response too, each `discount` times less per
    token; taken of normalised rewards. 0, the default of every published method, credits its own reward alone."""
    baseline: Literal["none", "closed_form"] = "none"
    """closed_form subtracts from each reward what the student expects at its position (power, log_ratio,
    veto_reverse): the same gradient in expectation, with another variance (`logging.diagnostics_every`
    measures it). The teacher sends whole distributions then."""
    aggregate: Literal["window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum"] = "window_token_mean"
    """How token losses become one number."""
    stop_mode: Literal["raw", "mask", "cross_eos"] = "mask"
    """The last token, if it is a stop token: raw trains it as sampled, mask drops it, cross_eos asks the
    teacher for its own stop token in the student's place."""


class ImportanceConfig(NamedSection):
    """Off-policy correction of stale tokens. Keys besides `name` are its parameters (`low`, `high`)."""

    name: str = "truncated"
    """Weight of a token: none, or truncated (`min(exp(logp - behaviour_logp), high)`). Divergences take none."""


class OutcomeConfig(Section):
    """Graded final answers as a second reward: `rl_coef * advantage + opd_coef * reward` on every token."""

    rl_coef: Rate = 0.0
    """Coefficient of the advantage of a response among the responses to its prompt; 0 grades nothing."""
    opd_coef: Rate = 1.0
    """Coefficient of the objective's reward, after its normaliser; 0 is reinforcement learning alone."""
    std: Literal["sample", "population", "none"] = "sample"
    """What a group's advantages are divided by: its sample or population standard deviation, or nothing."""
