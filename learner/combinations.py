"""Settings that are right each by itself and not together: one error names the field, the reason and a way out.

No torch: checked before anything starts.
"""

import rewards
from settings.objective import NamedSection
from settings.run import RunConfig


def check_combinations(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError for settings that contradict each other; names must be known. `needs` are the objective's."""
    if needs.form == "direct":
        _check_without_rewards(config)
    if config.objective.baseline == "closed_form":
        _check_baseline(config)
    _check_correction(config, needs)
    own_mask = rewards.OBJECTIVES[config.objective.name].token_mask
    if own_mask is not None and config.masks.selection != "none":
        raise ValueError(
            f"masks.selection must be none with {config.objective.name}, which chooses its tokens itself, got "
            f"{config.masks.selection}"
        )


def parameters_of(section: NamedSection, name: str, kind: rewards.Kind, field: str) -> rewards.Params:
    """Return the section's parameters, checked and complete; ValueError naming `field` and parameter."""
    if name != "none":
        return rewards.validate(kind, name, section.parameters, field=field)
    for given in section.parameters:
        known = ", ".join(type(section).model_fields)
        raise ValueError(
            f"{field}.{given} is unknown: as configured, {field} takes {known} (nearest: "
            f"{rewards.nearest(given, [*type(section).model_fields])})"
        )
    return {}


def _check_without_rewards(config: RunConfig) -> None:
    """A divergence is differentiated itself: what changes rewards or their loss has no meaning."""
    given_and_neutral = {
        "objective.normaliser": (config.objective.normaliser, "none"),
        "objective.discount": (config.objective.discount, 0.0),
        "objective.baseline": (config.objective.baseline, "none"),
        "token_weights.name": (config.token_weights.name, "none"),
        "surrogate.name": (config.surrogate.name, "policy_gradient"),
    }
    for field, (given, neutral) in given_and_neutral.items():
        if given != neutral:
            raise ValueError(
                f"{field} must be {neutral} with {config.objective.name}, which has no rewards, got {given}"
            )


def _check_baseline(config: RunConfig) -> None:
    objective, rollout = config.objective, config.rollout
    if objective.name not in rewards.BASELINES:
        known = ", ".join(sorted(rewards.BASELINES))
        raise ValueError(
            f"objective.baseline must be none with {objective.name}: a closed form is known for {known} only"
        )
    sampled = "a baseline is the expectation over the full softmax at temperature 1, from which tokens must come"
    unit = "a baseline is the expectation of one token's own reward, as it is"
    given_and_needed = {
        "rollout.temperature": (rollout.temperature, 1.0, sampled),
        "rollout.top_p": (rollout.top_p, 1.0, sampled),
        "rollout.top_k": (rollout.top_k, -1, sampled),
        "objective.normaliser": (objective.normaliser, "none", unit),
        "objective.discount": (objective.discount, 0.0, unit),
        "objective.logprob_floor": (objective.parameters.get("logprob_floor"), None, unit),
    }
    for field, (given, needed, reason) in given_and_needed.items():
        if given != needed:
            valid = "none" if needed is None else needed
            raise ValueError(
                f"{field} must be {valid} with objective.baseline closed_form, got {given}: {reason} (or set "
                "objective.baseline none)"
            )


def _check_correction(config: RunConfig, needs: rewards.Needs) -> None:
    """Stale tokens need one correction, and not two."""
    importance, surrogate = config.importance.name, config.surrogate.name
    if surrogate != "policy_gradient":
        if importance != "none":
            raise ValueError(
                f"importance.name must be none with surrogate.name {surrogate}, which corrects by its own ratio "
                f"to the policy that sampled, got {importance} (or set surrogate.name policy_gradient)"
            )
    elif importance == "none" and config.max_staleness > 0 and needs.form != "direct":
        raise ValueError(
            f"importance.name must not be none with max_staleness {config.max_staleness}: stale tokens need a "
            f"correction for {config.objective.name} (nearest valid: truncated, or max_staleness 0)"
        )
