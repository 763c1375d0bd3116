"""Sections of the configuration that choose and weigh tokens, and the loss that their advantages enter.

Keys of a section besides its own are the parameters of what it names; `rewards.validate` checks them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


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
