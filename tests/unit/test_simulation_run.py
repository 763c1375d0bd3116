"""Simulated runs: the real controller trains every slot once, within the bound, and is named what limits it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from commands.plan.prompts import LengthsConfig
from commands.plan.run import RatesConfig, run_virtually, simulate, simulated_run
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates, SimulatedLearner
from records.ledger import valid_ledger
from reporting.advisor import advise
from settings.run import RunConfig

pytestmark = pytest.mark.timeout(120)

BASE: dict[str, Any] = {
    "student": {"model_path": "simulated"},
    "teacher": {"model_path": "simulated"},
    "data": {"train_path": "simulated"},
    "batch_size": 16,
    "max_steps": 12,
    "evaluation": {"teacher": False},
    "checkpoint": {"every_steps": 0},
}
LONG_TAIL = LengthsConfig(prompt=100, median=300, spread=1.0, max=8192)
BALANCED = RatesConfig(
    rollout=EngineRates(step_s=0.02, sequence_s=0.0002),
    teacher=EngineRates(prefill_tokens_per_s=20_000),
    learner=LearnerRates(step_s=0.2, tokens_per_s=10_000),
    lengths=LONG_TAIL,
)


def run_config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate(BASE | settings)


def total_s(rows: list[dict[str, Any]]) -> float:
    return sum(row["time/step_s"] for row in rows)


@pytest.mark.parametrize(
    ("max_staleness", "batches_ahead", "samples"), [(0, 0, 1), (1, 1, 2), (4, 1, 1), (8, 2, 1)]
)
def test_every_slot_is_trained_once_within_the_staleness_bound(
    tmp_path: Path, max_staleness: int, batches_ahead: int, samples: int
) -> None:
    config = run_config(
        max_staleness=max_staleness,
        batches_ahead=batches_ahead,
        num_samples_per_prompt=samples,
        rollout={"num_workers": 2},
    )

    async def main() -> list[dict[str, Any]]:
        async with simulated_run(config, BALANCED, tmp_path) as run:
            await run.pipeline.run()
            return run.folder.valid_metrics()

    rows = run_virtually(main())
    uids = Counter(uid for each in valid_ledger(tmp_path / "run" / "ledger.jsonl").values() for uid in each)
    assert sorted(int(uid.split("-")[0]) for uid in uids) == list(range(12 * 16))
    assert set(uids.values()) == {1}
    assert len(rows) == 12
    worst = max(row["staleness/max"] for row in rows)
    assert worst <= max_staleness
    assert (worst > 0) == (max_staleness > 0)
    tokens = LONG_TAIL.draw(12 * 16 * samples, seed=config.seed)
    assert sum(row["tokens_trained"] for row in rows) == sum(tokens)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    def rows(seed: int) -> list[dict[str, Any]]:
        found = simulate(run_config(seed=seed, rollout={"num_workers": 3}), BALANCED)
        return [{key: value for key, value in row.items() if key != "time_s"} for row in found]

    first = rows(1)
    assert rows(1) == first
    assert rows(2) != first


def test_asynchronous_runs_with_long_tails_are_much_faster_than_synchronous_ones() -> None:
    synchronous = total_s(simulate(run_config(max_staleness=0), BALANCED))
    asynchronous = total_s(simulate(run_config(max_staleness=8, batches_ahead=2), BALANCED))
    assert synchronous >= 1.6 * asynchronous


LIMITS = {
    "rollout": {"rollout": EngineRates(step_s=0.1, sequence_s=0.002)},
    "teacher": {"teacher": EngineRates(prefill_tokens_per_s=500)},
    "learner": {"learner": LearnerRates(step_s=1.0, tokens_per_s=800)},
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_limits_a_run_is_named(limit: str) -> None:
    rollout = {"num_workers": 2, "max_in_flight": 4 if limit == "rollout" else 128}
    config = run_config(rollout=rollout, teacher={"model_path": "simulated", "max_batch_tokens": 2048})
    rows = simulate(config, BALANCED.model_copy(update=LIMITS[limit]))
    advice = advise(rows[3:])
    assert advice is not None
    assert advice.limit == limit
    assert advice.share > 0.5


def test_a_learner_bound_run_takes_the_time_of_its_steps() -> None:
    rates = BALANCED.model_copy(update={"learner": LearnerRates(step_s=1.0, tokens_per_s=800, publish_s=0.5)})
    rows = simulate(run_config(rollout={"num_workers": 8}, max_staleness=8), rates)
    for row in rows:
        tokens = row["tokens_trained"] + 16 * LONG_TAIL.prompt
        assert row["time/train_s"] == pytest.approx(1.0 + tokens / 800)
        assert row["time/publish_s"] == pytest.approx(0.5)


def test_ranks_share_the_tokens_of_a_batch() -> None:
    learner = SimulatedLearner(LearnerRates(), num_prompt_tokens=0, num_ranks=2)
    assert learner._largest_share([5, 4, 3, 3]) == 8
    one, two = (
        simulate(run_config(learner={"num_workers": n}), BALANCED.model_copy(update=LIMITS["learner"]))
        for n in (1, 2)
    )
    assert [row["tokens_trained"] for row in two[:1]] == [row["tokens_trained"] for row in one[:1]]
    ratio = (one[0]["time/train_s"] - 1.0) / (two[0]["time/train_s"] - 1.0)
    assert 1.6 < ratio <= 2.0


def test_several_scorers_are_simulated_too() -> None:
    config = run_config(
        max_steps=4,
        teacher={"model_path": "simulated", "sources": ["math"]},
        teachers={"code": {"model_path": "simulated", "sources": ["code"]}},
        reference={"model_path": "simulated"},
    )
    rows = simulate(config, BALANCED)
    assert len(rows) == 4
    assert {"throughput/teacher-code", "throughput/reference"} <= rows[0].keys()


def test_lengths_have_the_median_the_spread_and_the_limit_that_were_asked_for() -> None:
    drawn = sorted(LengthsConfig(median=300, spread=1.0, max=2000).draw(20_000, seed=0))
    assert drawn[10_000] == pytest.approx(300, rel=0.03)
    assert drawn[int(0.841 * 20_000)] == pytest.approx(300 * 2.718, rel=0.05)
    assert drawn[-1] == 2000
    assert set(LengthsConfig(median=50, spread=0, max=100).draw(5, seed=1)) == {50}
