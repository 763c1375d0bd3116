"""Rates that are fitted from a run's rows: those of a simulated run are found again."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.waiting import now
from commands.plan.fitting import fit_line, fit_rates, read_run
from commands.plan.plan_config import SimulationConfig
from commands.plan.prediction import check_fit, predict
from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig
from commands.plan.run import run_virtually, simulated_run
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates
from controller.meters import WorkMeter
from settings.load import save_config
from settings.run import RunConfig

pytestmark = pytest.mark.timeout(120)

TRUE = RatesConfig(
    rollout=EngineRates(step_s=0.03, sequence_s=0.0005, max_num_seqs=64, prefill_tokens_per_s=50_000, load_s=0.4),
    teacher=EngineRates(prefill_tokens_per_s=6_000),
    learner=LearnerRates(step_s=0.6, tokens_per_s=9_000, publish_s=0.3),
    lengths=LengthsConfig(prompt=80, median=200, spread=0.8, max=1024),
)
EFFORT = SimulationConfig(responses=800)


def run_config(**settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "student": {"model_path": "simulated"},
        "teacher": {"model_path": "simulated"},
        "data": {"train_path": "simulated"},
        "rollout": {"max_response_tokens": 1024, "engine": {"max_num_seqs": 64}, "num_workers": 2},
        "batch_size": 24,
        "max_steps": 30,
        "evaluation": {"teacher": False},
        "checkpoint": {"every_steps": 0},
    }
    return RunConfig.model_validate(values | settings)


def left_by(config: RunConfig, path: Path) -> Path:
    """The folder of a finished simulated run."""

    async def main() -> Path:
        async with simulated_run(config, TRUE, path) as run:
            await run.pipeline.run()
            return run.folder.path

    folder = run_virtually(main())
    save_config(config, folder / "config.yaml")
    return folder


@pytest.mark.parametrize("max_staleness", [0, 8])
def test_the_rates_of_a_simulated_run_are_found_again(tmp_path: Path, max_staleness: int) -> None:
    found = fit_rates(read_run(str(left_by(run_config(max_staleness=max_staleness), tmp_path))))
    assert found.learner.step_s == pytest.approx(0.6, rel=0.02)
    assert found.learner.tokens_per_s == pytest.approx(9_000, rel=0.02)
    assert found.learner.publish_s == pytest.approx(0.3)
    assert found.teacher.prefill_tokens_per_s == pytest.approx(6_000, rel=0.02)
    assert found.rollout.load_s == pytest.approx(0.4, rel=0.02)
    assert found.lengths.mean == pytest.approx(TRUE.lengths.mean, rel=0.1)
    assert (found.lengths.prompt, found.lengths.max) == (80, 1024)
    assert found.lengths.spread == pytest.approx(0.8, rel=0.1)
    together = 12
    seconds = found.rollout.step_s + together * found.rollout.sequence_s
    assert seconds == pytest.approx(0.03 + together * 0.0005, rel=0.15)


@pytest.mark.parametrize("samples", [1, 4])
def test_fitted_rates_reproduce_the_run_and_predict_another(tmp_path: Path, samples: int) -> None:
    slots = 24 // samples
    config = run_config(num_samples_per_prompt=samples, batch_size=slots, max_staleness=8)
    folder = left_by(config, tmp_path)
    rates = fit_rates(read_run(str(folder)))
    assert check_fit(str(folder), rates, EFFORT).ratio == pytest.approx(1, abs=0.1)
    other = run_config(num_samples_per_prompt=samples, batch_size=slots, max_staleness=0)
    fitted, true = predict(other, rates, EFFORT), predict(other, TRUE, EFFORT)
    assert fitted.tokens_per_s == pytest.approx(true.tokens_per_s, rel=0.12)


def test_a_folder_that_cannot_be_fitted_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"from_run: .* is no run folder"):
        read_run(str(tmp_path / "none"))
    folder = left_by(run_config(max_steps=9), tmp_path)
    with pytest.raises(ValueError, match=r"from_run: .* must have trained 12 steps or more"):
        read_run(str(folder))
    shutil.rmtree(folder)
    folder = left_by(run_config(), tmp_path)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("work/rollout_held_s", "something"))
    with pytest.raises(ValueError, match=r"lack work/rollout_held_s"):
        read_run(str(folder))


def test_lines_have_no_negative_part_and_use_the_default_where_points_cannot_tell() -> None:
    x, ones = np.array([1.0, 2.0, 3.0]), np.ones(3)
    assert fit_line(x, 5 + 2 * x, ones, default_slope=None) == pytest.approx((5, 2))
    assert fit_line(x, 5 - x, ones, default_slope=None) == pytest.approx((0, 1.5))
    assert fit_line(x, 5 - x, ones, default_slope=0.25) == pytest.approx((2, 0.5))
    assert fit_line(np.array([4.0, 4.0]), np.array([2.0, 4.0]), np.ones(2), default_slope=0.25) == pytest.approx(
        (1.5, 0.375)
    )


def test_work_is_metered_by_worker_and_taken_once() -> None:
    async def main() -> list[dict[str, float]]:
        meter = WorkMeter()
        meter.hold("a", 2)
        await asyncio.sleep(3)
        meter.hold("a", 4)
        meter.hold("b", 1)
        await asyncio.sleep(1)
        meter.hold("a", 0)
        meter.add(70)
        taken = [meter.take()]
        await asyncio.sleep(2)
        assert now() == 6.0
        return [*taken, meter.take()]

    assert run_virtually(main()) == [
        {"tokens": 70, "busy_s": 5.0, "held_s": 6 + 4 + 1, "held_squared_s": 12 + 16 + 1},
        {"tokens": 0, "busy_s": 2.0, "held_s": 2.0, "held_squared_s": 2.0},
    ]
