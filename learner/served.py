"""Which objectives a run can serve, and what they ask of teachers: checked before anything starts. No torch."""

import logging
from typing import Literal

import rewards
from learner.combinations import check_combinations, parameters_of
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
    """What the teacher must return per token: whole distributions, its likeliest tokens, or one log-prob.

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
