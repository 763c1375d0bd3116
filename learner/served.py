"""Which objectives a run can serve, and what they ask of teachers: checked before anything starts. No torch."""

import logging
from typing import Literal

import rewards
from cluster.config import RunConfig

logger = logging.getLogger(__name__)

SERVED_EXTRAS = {"step", "max_steps", "sampled_ids_N", "sampled_teacher_logp_N", "teacher_entropy_N"}
"""Inputs of objectives that the learner has, or that are optional."""


def check_objective(config: RunConfig) -> RunConfig:
    """Return the configuration with the objective's parameters complete; ValueError naming the field."""
    objective, importance = config.objective, config.importance
    parameters = rewards.validate("objective", objective.name, objective.parameters)
    rewards.validate("normaliser", objective.normaliser, {}, field="objective.normaliser")
    weights = rewards.validate("importance", importance.name, importance.parameters)
    needs = rewards.OBJECTIVES[objective.name].needs_with(parameters)
    check_is_served(config, needs)
    if needs.form == "direct" and objective.normaliser != "none":
        raise ValueError(
            f"objective.normaliser must be none with {objective.name}, which has no rewards, got "
            f"{objective.normaliser}"
        )
    if importance.name == "none" and config.max_staleness > 0 and needs.form != "direct":
        raise ValueError(
            f"importance.name must not be none with max_staleness {config.max_staleness}: stale tokens need a "
            f"correction for {objective.name} (nearest valid: truncated, or max_staleness 0)"
        )
    if config.batch_size < config.learner.num_workers:
        raise ValueError(
            f"learner.num_workers must be <= batch_size ({config.batch_size}), got {config.learner.num_workers}"
        )
    evaluation = config.evaluation
    if "full" in needs.teacher and evaluation.teacher:
        logger.warning("the teacher is not evaluated: for %s its engines have no output head", objective.name)
        evaluation = evaluation.model_copy(update={"teacher": False})
    return config.model_copy(
        update={
            "objective": objective.model_copy(update=parameters),
            "importance": importance.model_copy(update=weights),
            "evaluation": evaluation,
        }
    )


def check_is_served(config: RunConfig, needs: rewards.Needs) -> None:
    """ValueError if the objective or the correction asks for something that no worker of a run provides."""
    name, importance = config.objective.name, rewards.IMPORTANCE_WEIGHTS[config.importance.name]
    entry = rewards.OBJECTIVES[name]
    missing = {
        "the teacher's log-probs of tokens that the student chooses": "ids_query" in needs.teacher,
        "a reference model": needs.reference,
        "graded responses": needs.outcome,
        "a token mask from the entropies of the whole window": entry.token_mask is not None,
        f"further inputs ({', '.join(entry.extras)})": not {*entry.extras} <= SERVED_EXTRAS,
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(
                f"objective.name: {name} needs {what}, which no worker provides as it is configured (nearest "
                f"valid: {'power' if needs.form == 'pg' else 'lsm with support teacher'})"
            )
    if importance.needs.proximal:
        raise ValueError(
            f"importance.name: {importance.name} needs proximal log-probs, which the learner does not keep "
            f"(nearest valid: truncated)"
        )


def signal_kind(config: RunConfig) -> Literal["token", "topk", "full"]:
    """What the teacher must return per token: whole distributions, its likeliest tokens, or one log-prob."""
    parameters = config.objective.parameters
    teacher = rewards.OBJECTIVES[config.objective.name].needs_with(parameters).teacher
    return "full" if "full" in teacher else "topk" if "topk" in teacher else "token"
