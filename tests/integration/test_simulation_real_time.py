"""Predictions in simulated time against the same workers as Ray actors, which take their time really.

    python -m pytest -m slow tests/integration/test_simulation_real_time.py -s

Timed: for a machine with two cores that does little else. The ratios are printed.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Pool
from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig
from commands.plan.run import simulate, simulated_run
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates
from reporting.advisor import advise
from settings.run import RunConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WARM_UP = 3
"""Steps that fill the pipeline."""

TOLERANCE = 0.15

RATES = RatesConfig(
    rollout=EngineRates(step_s=0.02, sequence_s=0.001, max_num_seqs=12, prefill_tokens_per_s=20_000, load_s=0.05),
    teacher=EngineRates(prefill_tokens_per_s=8_000, call_s=0.02),
    learner=LearnerRates(step_s=0.1, tokens_per_s=20_000, publish_s=0.05),
    lengths=LengthsConfig(prompt=20, median=40, spread=0.8, max=200),
)
TINY = {"resources": {"num_cpus": 0.01}}


@dataclass(frozen=True)
class Case:
    """A configuration, and what limits it."""

    limit: str
    rates: RatesConfig
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "rollout-bound": Case("rollout", RATES, {"rollout": {"engine": {"max_num_seqs": 12}}}),
    "teacher-bound": Case(
        "teacher",
        RATES.model_copy(update={"teacher": EngineRates(prefill_tokens_per_s=900, call_s=0.02)}),
        {"teacher": {"max_batch_tokens": 512}, "rollout": {"num_workers": 2}},
    ),
    "learner-bound": Case(
        "learner",
        RATES.model_copy(update={"learner": LearnerRates(step_s=0.3, tokens_per_s=1500, publish_s=0.1)}),
        {"rollout": {"num_workers": 2}},
    ),
    "synchronous": Case("window", RATES, {"max_staleness": 0, "rollout": {"num_workers": 2}}),
}


def config_of(case: Case, path: Path) -> RunConfig:
    sections: dict[str, Any] = {"rollout": TINY, "teacher": TINY | {"model_path": "simulated"}, "learner": TINY}
    sections = {name: each | case.settings.get(name, {}) for name, each in sections.items()}
    return RunConfig.model_validate(
        {
            "student": {"model_path": "simulated"},
            "data": {"train_path": "simulated"},
            "runs_path": str(path),
            "batch_size": 16,
            "max_steps": 14,
            "evaluation": {"teacher": False},
            "checkpoint": {"every_steps": 0},
            **case.settings,
            **sections,
        }
    )


async def measure(config: RunConfig, rates: RatesConfig, path: Path) -> list[dict[str, Any]]:
    """Rows of a run of Ray actors."""
    async with simulated_run(config, rates, path, pool_class=Pool) as run:
        await run.pipeline.run()
        return run.folder.valid_metrics()


def tokens_per_s(rows: list[dict[str, Any]]) -> float:
    counted = rows[WARM_UP:]
    return sum(row["tokens_trained"] for row in counted) / sum(row["time/step_s"] for row in counted)


@pytest.mark.parametrize("name", CASES)
def test_measured_throughput_is_within_15_percent_of_the_prediction(
    local_ray: None, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    config = config_of(case, tmp_path)
    predicted = simulate(config, case.rates)
    measured = asyncio.run(measure(config, case.rates, tmp_path / "real"))
    ratio = tokens_per_s(measured) / tokens_per_s(predicted)
    limits = [advice.limit for rows in (predicted, measured) if (advice := advise(rows[WARM_UP:])) is not None]
    stale = [max(row["staleness/max"] for row in rows) for rows in (predicted, measured)]
    speeds = f"predicted {tokens_per_s(predicted):.0f} tokens/s, measured {tokens_per_s(measured):.0f}"
    print(f"\n{name}: {speeds}, ratio {ratio:.3f}; limits {limits}; largest staleness {stale}")
    assert limits == [case.limit] * 2
    assert max(stale) <= config.max_staleness
    assert abs(ratio - 1) <= TOLERANCE
