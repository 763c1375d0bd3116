"""Which objectives a run can serve, and what they ask of teachers: checked before anything starts. No torch.

Settings may be right each by itself and not together: one error names the field, the reason and a way out.
"""

import logging
from typing import Literal

import rewards
from settings.objective import NamedSection
from settings.run import RunConfig

logger = logging.getLogger(__name__)

SERVED_EXTRAS = {
    *("step", "max_steps", "sampled_ids_N", "sampled_teacher_logp_N", "teacher_entropy_N", "reference_logp_BT")
}
"""Inputs of objectives that the learner has, or that are optional."""


def check_objective(config: RunConfig) -> RunConfig:
    """Return the configuration with the parameters of every named entry complete; ValueError naming the field."""
    objective, importance, surrogate = config.objective, config.importance, config.surrogate
    masks, token_weights = config.masks, config.token_weights
    parameters = rewards.validate("objective", objective.name, objective.parameters)
    rewards.validate("normaliser", objective.normaliser, {}, field="objective.normaliser")
    of_importance = rewards.validate("importance", importance.name, importance.parameters)
    of_surrogate = rewards.validate("surrogate", surrogate.name, surrogate.parameters)
    of_masks = parameters_of(masks, masks.selection, "token_mask", "masks")
    of_weights = parameters_of(token_weights, token_weights.name, "token_weight", "token_weights")
    config = config.model_copy(
        update={
            "objective": objective.model_copy(update=parameters),
            "importance": importance.model_copy(update=of_importance),
            "surrogate": surrogate.model_copy(update=of_surrogate),
            "masks": masks.model_copy(update=of_masks),
            "token_weights": token_weights.model_copy(update=of_weights),
        }
    )
    needs = rewards.OBJECTIVES[objective.name].needs_with(parameters)
    trains_stop = needs.form == "direct" or needs.full_softmax or objective.baseline == "closed_form"
    if trains_stop and "stop_mode" not in objective.model_fields_set:
        completed = config.objective.model_copy(update={"stop_mode": "raw"})
        config = config.model_copy(update={"objective": completed})
    check_combinations(config, needs)
    check_is_served(config, needs)
    if config.batch_size < config.learner.num_workers:
        raise ValueError(
            f"learner.num_workers must be <= batch_size ({config.batch_size}), got {config.learner.num_workers}"
        )
    check_outcome(config, needs)
    evaluation, reference = config.evaluation, config.reference
    if reference.model_path is not None and not needs.reference:
        logger.warning("reference.model_path is not used: %s compares with no reference model", objective.name)
        reference = reference.model_copy(update={"model_path": None})
    if signal_kind(config) == "full" and evaluation.teacher:
        logger.warning(
            "the teacher is not evaluated: for %s as configured its engines have no output head", objective.name
        )
        evaluation = evaluation.model_copy(update={"teacher": False})
    return config.model_copy(update={"evaluation": evaluation, "reference": reference})


def check_is_served(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError if the objective asks for something that no worker of a run provides."""
    name = config.objective.name
    entry = rewards.OBJECTIVES[name]
    missing = {
        "graded responses": needs.outcome,
        f"further inputs ({', '.join(entry.extras)})": not {*entry.extras} <= SERVED_EXTRAS,
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(
                f"objective.name: {name} needs {what}, which no worker provides as it is configured (nearest "
                f"valid: {'power' if needs.form == 'pg' else 'lsm with support teacher'})"
            )
    if needs.reference and config.reference.model_path is None:
        raise ValueError(f"reference.model_path: required for {name}, which needs a reference model, but not set")
    if signal_kind(config) == "full" and config.teachers:
        raise ValueError(
            f"objective.name: {name} as configured needs the teacher's output head in the learner, which holds "
            f"one, and there are {len(config.teachers) + 1} teachers (nearest valid: lsm with support teacher, "
            "or one teacher)"
        )


def check_outcome(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError if graded outcomes can have no effect as configured, or none that is right."""
    outcome, name = config.outcome, config.objective.name
    if outcome.rl_coef == 0:
        if outcome.opd_coef != 1:
            raise ValueError(
                f"outcome.opd_coef must be 1 with outcome.rl_coef 0, got {outcome.opd_coef:g}: nothing is mixed"
            )
        return
    if config.num_samples_per_prompt == 1:
        raise ValueError(
            "num_samples_per_prompt must be >= 2 with outcome.rl_coef > 0, got 1: without others beside it, the "
            "advantage of a response is always 0 (nearest valid: 2)"
        )
    if needs.form == "direct":
        raise ValueError(
            f"outcome.rl_coef must be 0 with {name}, which has no rewards to mix with, got {outcome.rl_coef:g} "
            f"(nearest valid: 0, or objective.name power)"
        )


def signal_kind(config: RunConfig) -> Literal["token", "topk", "full"]:
    """What the teacher must return per token: whole distributions, its top k tokens, or one log-prob.

    Besides the objective, a baseline, a selection and a token weight may ask for whole distributions, which serve
    every objective: also those that need the teacher's log-probs of tokens that the student chooses.
    """
    objective, masks, weights = config.objective, config.masks, config.token_weights
    asked = {*rewards.OBJECTIVES[objective.name].needs_with(objective.parameters).teacher}
    if objective.baseline == "closed_form":
        asked |= {*rewards.BASELINES[objective.name].needs.teacher}
    if masks.selection != "none":
        asked |= {*rewards.TOKEN_MASKS[masks.selection].needs.teacher}
    if weights.name != "none":
        asked |= {*rewards.TOKEN_WEIGHTS[weights.name].needs.teacher}
    return "full" if asked & {"full", "ids_query"} else "topk" if "topk" in asked else "token"


def check_combinations(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError for settings that contradict each other; names must be known. `needs` are the objective's."""
    if needs.form == "direct":
        _check_without_rewards(config)
    if config.objective.baseline == "closed_form":
        _check_baseline(config)
    if needs.full_softmax:
        name = config.objective.name
        reason = "its reward is not 0 where it settles, but a constant, which only the whole softmax cancels"
        _check_full_softmax(config, f"{name} as configured", f"{reason} (or set objective.name log_ratio)")
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
    objective = config.objective
    if objective.name not in rewards.BASELINES:
        known = ", ".join(sorted(rewards.BASELINES))
        raise ValueError(
            f"objective.baseline must be none with {objective.name}: a closed form is known for {known} only"
        )
    reason = "a baseline is the expectation over the full softmax at temperature 1, from which tokens must come"
    _check_full_softmax(config, "objective.baseline closed_form", f"{reason} (or set objective.baseline none)")
    unit = "a baseline is the expectation of one token's own reward, as it is"
    given_and_needed = {
        "objective.normaliser": (objective.normaliser, "none"),
        "objective.discount": (objective.discount, 0.0),
        "objective.logprob_floor": (objective.parameters.get("logprob_floor"), None),
    }
    for field, (given, needed) in given_and_needed.items():
        if given != needed:
            valid = "none" if needed is None else needed
            raise ValueError(
                f"{field} must be {valid} with objective.baseline closed_form, got {given}: {unit} (or set "
                "objective.baseline none)"
            )


def _check_full_softmax(config: RunConfig, what: str, reason: str) -> None:
    """ValueError unless tokens are sampled from the student's whole distribution, as it is, and all count."""
    for name, needed in {"temperature": 1.0, "top_p": 1.0, "top_k": -1}.items():
        given = getattr(config.rollout, name)
        if given != needed and not (name == "top_k" and given == 0):
            raise ValueError(f"rollout.{name} must be {needed} with {what}, got {given}: {reason}")
    masks = config.masks
    if config.objective.stop_mode == "mask":
        raise ValueError(f"objective.stop_mode must be raw or cross_eos with {what}, got mask: {reason}")
    for name, is_set in {"special_tokens": masks.special_tokens, "drop_truncated": masks.drop_truncated}.items():
        if is_set:
            raise ValueError(f"masks.{name} must be left out with {what}: {reason}")


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
