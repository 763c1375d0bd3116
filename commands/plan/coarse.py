"""A smaller run that takes the same time: one simulated response stands for `factor` equal ones."""

from dataclasses import dataclass

from commands.plan.plan_config import SimulationConfig
from commands.plan.rates import RatesConfig
from commands.plan.timing import EngineRates
from settings.run import RunConfig

MIN_RESPONSES = 64
"""Responses of a batch at least: fewer have milder stragglers, and the prediction would be too fast."""


@dataclass(frozen=True)
class CoarseRun:
    """What is simulated for a run."""

    config: RunConfig
    rates: RatesConfig
    factor: int
    """Responses that a simulated one stands for; tokens count so many times."""
    num_warm_up: int
    """Steps at the start that fill the pipeline and do not count."""


def coarse_run(config: RunConfig, rates: RatesConfig, effort: SimulationConfig) -> CoarseRun:
    """Shorten a run, and thin its batches out where all responses would be too many to simulate."""
    num_warm_up = 2 * (1 + config.num_batches_ahead)
    batch = config.batch_size * config.num_samples_per_prompt
    num_steps = num_warm_up + max(effort.steps, effort.responses // batch)
    factor = _factor(config, num_steps * batch / effort.responses)
    updates = {
        "run_name": "plan",
        "seed": effort.seed,
        "max_steps": num_steps,
        "batch_size": config.batch_size // factor,
        "rollout": config.rollout.model_copy(
            update={"max_in_flight": max(1, config.rollout.max_in_flight // factor)}
        ),
        "checkpoint": config.checkpoint.model_copy(update={"every_steps": 0}),
        "evaluation": config.evaluation.model_copy(update={"every_steps": 0, "num_workers": 0}),
        **_thin_scorers(config, factor),
    }
    return CoarseRun(config.model_copy(update=updates), _coarse_rates(rates, factor), factor, num_warm_up)


def _factor(config: RunConfig, wanted: float) -> int:
    """The smallest divisor of the batch that is enough, or the largest that leaves a batch.

    Half as much is not worth it: a factor of 1 keeps every response.
    """
    most = max(1, config.batch_size * config.num_samples_per_prompt // MIN_RESPONSES)
    divisors = [n for n in range(1, most + 1) if config.batch_size % n == 0]
    return 1 if wanted < 2 else next((n for n in divisors if n >= wanted), divisors[-1])


def _thin_scorers(config: RunConfig, factor: int) -> dict[str, object]:
    def thin(tokens: int) -> dict[str, int]:
        return {"max_batch_tokens": max(1, tokens // factor)}

    teachers = {
        name: each.model_copy(update=thin(each.max_batch_tokens)) for name, each in config.teachers.items()
    }
    return {
        "teacher": config.teacher.model_copy(update=thin(config.teacher.max_batch_tokens)),
        "reference": config.reference.model_copy(update=thin(config.reference.max_batch_tokens)),
        "teachers": teachers,
    }


def _coarse_rates(rates: RatesConfig, factor: int) -> RatesConfig:
    learner = rates.learner.model_copy(update={"tokens_per_s": rates.learner.tokens_per_s / factor})
    engines = {"rollout": _coarse_engine(rates.rollout, factor), "teacher": _coarse_engine(rates.teacher, factor)}
    return rates.model_copy(update={"learner": learner, **engines})


def _coarse_engine(rates: EngineRates, factor: int) -> EngineRates:
    """A step with n sequences takes as long as one with `factor` times n."""
    return rates.model_copy(
        update={
            "step_s": rates.step_s + (factor - 1) * rates.sequence_s,
            "sequence_s": factor * rates.sequence_s,
            "max_num_seqs": max(1, rates.max_num_seqs // factor),
            "prefill_tokens_per_s": rates.prefill_tokens_per_s / factor,
        }
    )
