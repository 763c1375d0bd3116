"""Settings of the objective: rewards or divergences, token masks and weights, loss, and off-policy correction.

Other keys of a section are the parameters of the entry it names; `rewards.validate` checks them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from settings.engine import Rate, Section


class NamedSection(BaseModel):
    """Base of sections whose other keys are the parameters of a registry entry."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the named entry as given."""
        return dict(self.model_extra or {})


class MasksConfig(NamedSection):
    """Response tokens excluded from training; they do not count in the loss's denominator. Other keys are the
    parameters of `selection`."""

    special_tokens: list[str] = []
    """Texts such as `<think>`: the first occurrence of each of their token ids in a response is excluded."""
    drop_truncated: bool = False
    """Exclude responses that were truncated at the length limit."""
    selection: Literal["none", "entropy_top", "tip", "fire_opd"] = "none"
    """Tokens selected over the whole window. entropy_top: the fraction `top_fraction` (0.2) with the highest
    student entropy. tip: the fraction `keep` (0.5) that is uncertain or far from the teacher, which sends full
    distributions. fire_opd: all but the fraction `lowest_quantile` (0.2) of responses least likely under the
    teacher."""


class TokenWeightsConfig(NamedSection):
    """Weights that multiply the advantages of tokens. Other keys are their parameters."""

    name: Literal["none", "iw_opd", "fire_opd"] = "none"
    """iw_opd: more weight (`gamma`, 0.5) on earlier tokens. fire_opd: more weight where the teacher is certain
    (`alpha`, 1) and the student is not (`beta`, 1); the teacher sends full distributions."""


class SurrogateConfig(NamedSection):
    """The policy-gradient loss. Other keys are its parameters (`eps`, `c`, `cap`, ...)."""

    name: str = "policy_gradient"
    """policy_gradient (-weight * advantage * logp, with the weight of `importance`), or a loss that corrects for
    staleness by its own ratio, with `importance.name none`: unclipped, ppo, decoupled_ppo, dppo. With one gradient
    step per window, the proximal policy of decoupled_ppo is the current one: its ratio is 1, and its gradient that
    of the policy gradient with `importance.name decoupled`."""


class ObjectiveConfig(NamedSection):
    """What is optimized. Other keys are the objective's own parameters (`alpha`, `low`, ...)."""

    name: str = "power"
    """Reward of each sampled token (power, log_ratio, log_clip, log_tanh, ...), or divergence between the two
    distributions (reverse_kl, forward_kl, jsd, lsm, ...); it determines what the teacher sends."""
    normaliser: str = "none"
    """Normalisation of rewards over the window: none, zscore, sign_max_abs."""
    discount: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Discount factor of later rewards in the response, which are credited to a token after normalisation. 0, as
    in every published method, credits a token with its own reward only."""
    baseline: Literal["none", "closed_form"] = "none"
    """closed_form subtracts from each reward its expectation under the student (power, log_ratio, veto_reverse):
    the same expected gradient with a different variance (`logging.diagnostics_every` measures it). The teacher
    sends full distributions."""
    aggregate: Literal["window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum"] = "window_token_mean"
    """How token losses are aggregated."""
    stop_mode: Literal["raw", "mask", "cross_eos"] = "mask"
    """Treatment of a final stop token: raw trains it as sampled, mask excludes it, cross_eos trains it as sampled
    and asks the teacher for its own stop token instead, the one that ends a turn in its chat template. By default
    raw for divergences, which learn where to stop from the whole distribution there, whatever was sampled,
    and for rewards that only the whole softmax cancels; mask for other rewards."""


class ImportanceConfig(NamedSection):
    """Off-policy correction of stale tokens. Other keys are its parameters (`low`, `high`)."""

    name: str = "truncated"
    """Weight of a token: none, or truncated (`min(exp(logp - behaviour_logp), high)`). Divergences take none."""


class OutcomeConfig(Section):
    """Graded final answers as an additional reward: `rl_coef * advantage + opd_coef * reward` on every token."""

    rl_coef: Rate = 0.0
    """Coefficient of a response's advantage over the other responses to its prompt; 0 disables grading."""
    opd_coef: Rate = 1.0
    """Coefficient of the objective's reward, after its normaliser; 0 is pure reinforcement learning."""
    std: Literal["sample", "population", "none"] = "sample"
    """Standard deviation that a group's advantages are divided by: sample, population, or none."""
