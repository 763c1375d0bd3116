"""Which objectives a run can serve, and what they ask of teachers: checked before anything starts. No torch."""

import logging
from typing import Literal

import rewards
from cluster.config import RunConfig
from learner.combinations import check_combinations, parameters_of

logger = logging.getLogger(__name__)

SERVED_EXTRAS = {"step", "max_steps", "sampled_ids_N", "sampled_teacher_logp_N", "teacher_entropy_N"}
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
    check_is_served(config, needs)
    check_combinations(config, needs)
    if config.batch_size < config.learner.num_workers:
        raise ValueError(
            f"learner.num_workers must be <= batch_size ({config.batch_size}), got {config.learner.num_workers}"
        )
    if signal_kind(config) == "full" and config.evaluation.teacher:
        logger.warning(
            "the teacher is not evaluated: for %s as configured its engines have no output head", objective.name
        )
        evaluation = config.evaluation.model_copy(update={"teacher": False})
        config = config.model_copy(update={"evaluation": evaluation})
    return config


def check_is_served(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError if the objective asks for something that no worker of a run provides."""
    name = config.objective.name
    entry = rewards.OBJECTIVES[name]
    missing = {
        "the teacher's log-probs of tokens that the student chooses": "ids_query" in needs.teacher,
        "a reference model": needs.reference,
        "graded responses": needs.outcome,
        f"further inputs ({', '.join(entry.extras)})": not {*entry.extras} <= SERVED_EXTRAS,
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(
                f"objective.name: {name} needs {what}, which no worker provides as it is configured (nearest "
                f"valid: {'power' if needs.form == 'pg' else 'lsm with support teacher'})"
            )


def signal_kind(config: RunConfig) -> Literal["token", "topk", "full"]:
    """What the teacher must return per token: whole distributions, its likeliest tokens, or one log-prob.

    Besides the objective, a baseline, a selection and a token weight may ask for whole distributions, which serve
    every objective.
    """
    objective, masks, weights = config.objective, config.masks, config.token_weights
    asked = {*rewards.OBJECTIVES[objective.name].needs_with(objective.parameters).teacher}
    if objective.baseline == "closed_form":
        asked |= {*rewards.BASELINES[objective.name].needs.teacher}
    if masks.selection != "none":
        asked |= {*rewards.TOKEN_MASKS[masks.selection].needs.teacher}
    if weights.name != "none":
        asked |= {*rewards.TOKEN_WEIGHTS[weights.name].needs.teacher}
    return "full" if "full" in asked else "topk" if "topk" in asked else "token"
