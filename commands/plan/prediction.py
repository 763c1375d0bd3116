"""What a run will do: simulated for a number of steps, and summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.placement import plan
from commands.plan.coarse import coarse_run
from commands.plan.fitting import read_run
from commands.plan.plan_config import SimulationConfig
from commands.plan.rates import RatesConfig
from commands.plan.run import simulate
from reporting.advisor import advise
from settings.run import RunConfig

WAITS = {
    "rollout_wait": "time/rollout_wait_s",
    "score_wait": "time/score_wait_s",
    "train": "time/train_s",
    "publish": "time/publish_s",
}
"""Parts of the learner's time, and their keys in the metrics rows."""


@dataclass(frozen=True)
class Prediction:
    """Means over the simulated steps, without those that fill the pipeline."""

    workers: dict[str, int]
    """Workers by role."""
    step_s: float
    tokens_per_s: float
    """Trained response tokens per second."""
    steps_per_h: float
    staleness_mean: float
    staleness_max: float
    shares: dict[str, float]
    """Shares of the learner's time: waiting for rollouts, for scores, training, publishing."""
    limit: str
    """The stage that limits the run, as the advisor names it."""
    advice: str
    gpus: float
    gpu_hours_per_million_tokens: float
    responses_per_simulated: int
    """Responses that each simulated one stood for."""


def predict(config: RunConfig, rates: RatesConfig, effort: SimulationConfig) -> Prediction:
    """Simulate the run with the workers that its configuration says."""
    coarse = coarse_run(config, rates, effort)
    rows = simulate(coarse.config, coarse.rates)[coarse.num_warm_up :]
    total_s = sum(row["time/step_s"] for row in rows)
    tokens = coarse.factor * sum(row["tokens_trained"] for row in rows)
    gpus = gpus_of(config)
    advice = advise(rows)
    assert advice is not None, "simulated rows have times"
    return Prediction(
        workers=workers_of(config),
        step_s=total_s / len(rows),
        tokens_per_s=tokens / total_s,
        steps_per_h=3600 * len(rows) / total_s,
        staleness_mean=_mean(rows, "staleness/mean", weight="tokens_trained"),
        staleness_max=max(row["staleness/max"] for row in rows),
        shares={name: sum(row[key] for row in rows) / total_s for name, key in WAITS.items()},
        limit=advice.limit,
        advice=advice.text,
        gpus=gpus,
        gpu_hours_per_million_tokens=gpus * total_s / 3600 / (tokens / 1e6),
        responses_per_simulated=coarse.factor,
    )


def workers_of(config: RunConfig) -> dict[str, int]:
    """Workers by role: rollout workers, those that score, ranks of the learner."""
    counts = {each.role: each.count for each in plan(config)}
    return {role: counts[role] for role in ("rollout", *config.scorers, "learner")}


def gpus_of(config: RunConfig) -> float:
    """GPUs that all workers reserve."""
    return sum(each.count * each.bundle.get("GPU", 0.0) for each in plan(config))


def with_workers(config: RunConfig, workers: Mapping[str, int]) -> RunConfig:
    """The same run with other numbers of workers."""
    updates: dict[str, Any] = {"teachers": dict(config.teachers)}
    for role, count in workers.items():
        if role.startswith("teacher-"):
            name = role.removeprefix("teacher-")
            updates["teachers"][name] = config.teachers[name].model_copy(update={"num_workers": count})
        else:
            updates[role] = getattr(config, role).model_copy(update={"num_workers": count})
    return config.model_copy(update=updates)


def _mean(rows: Sequence[Mapping[str, Any]], key: str, *, weight: str) -> float:
    return sum(row[key] * row[weight] for row in rows) / sum(row[weight] for row in rows)


@dataclass(frozen=True)
class FitCheck:
    """How well fitted rates reproduce the run that they come from."""

    measured_tokens_per_s: float
    simulated_tokens_per_s: float

    @property
    def ratio(self) -> float:
        """Simulated over measured throughput."""
        return self.simulated_tokens_per_s / self.measured_tokens_per_s


def check_fit(path: str, rates: RatesConfig, effort: SimulationConfig) -> FitCheck:
    """Simulate the run of this folder with rates that were fitted from it."""
    run = read_run(path)
    return FitCheck(run.tokens_per_s, predict(run.config, rates, effort).tokens_per_s)
