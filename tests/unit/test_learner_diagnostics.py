"""Diagnostics say where in a response the reward lies, and how heavy the log-ratio's negative tail is."""

import pytest
import torch

from learner.collate import collate
from learner.diagnostics import step_diagnostics
from learner.loss import Objective
from learner.metrics import StepTokens
from settings.objective import ImportanceConfig, ObjectiveConfig
from tests.unit.test_learner_scene import ALONE, STOPS, counts_of, replace_column, scored_table


def step_tokens(log_ratios: list[list[float]], *, step: int = 0, behaviour: float = -1.0) -> StepTokens:
    """Responses whose log-ratio is the reward; the student's log-prob is -1 everywhere."""
    table = scored_table([(2, len(row)) for row in log_ratios])
    table = replace_column(table, "teacher_log_probs", [[ratio - 1.0 for ratio in row] for row in log_ratios])
    table = replace_column(table, "behaviour_log_probs", [[behaviour] * len(row) for row in log_ratios])
    objective = Objective(ObjectiveConfig(name="log_ratio"), ImportanceConfig(name="none"))
    batches = collate([table], stop_mode="raw", stops=STOPS, max_tokens=1)  # one response each
    counts = counts_of(batches)
    losses = [
        objective.micro_batch_loss(batch, torch.full((n,), -1.0), torch.zeros(n), counts=counts)
        for batch, n in zip(batches, map(len, log_ratios), strict=True)
    ]
    return StepTokens(batches, losses, step=step)


def diagnose(log_ratios: list[list[float]], *, step: int = 0, behaviour: float = -1.0) -> dict[str, float]:
    return step_diagnostics(step_tokens(log_ratios, step=step, behaviour=behaviour), ranks=ALONE)


def test_reward_is_averaged_over_each_third_of_a_response() -> None:
    found = diagnose([[1.0, -1.0, 0.5], [0.5, 0.5, 0.5, 0.5, -4.0, -4.0]])
    thirds = [found[f"reward/{name}"] for name in ("early", "middle", "late")]
    assert thirds == pytest.approx([2 / 3, 0.0, -2.5])
    assert found["reward_abs/late"] == pytest.approx(8.5 / 3)


def test_the_curve_puts_the_first_token_in_the_first_tenth_and_the_last_in_the_last() -> None:
    found = diagnose([[1.0, 0.0, 0.0, -7.0]])
    curve = [found[f"reward/position_{index}"] for index in range(10)]
    assert curve[0] == pytest.approx(1.0)
    assert curve[9] == pytest.approx(-7.0)
    assert sum(map(abs, curve)) == pytest.approx(8.0)


def test_the_negative_tail_of_the_log_ratio_is_counted() -> None:
    found = diagnose([[0.0] * 98 + [-20.0, -6.0]])
    assert found["log_ratio/min"] == pytest.approx(-20.0)
    assert found["log_ratio/frac_lt_-5"] == pytest.approx(0.02)
    assert found["log_ratio/p5"] == pytest.approx(0.0)
    assert found["reward/p50"] == pytest.approx(0.0)


def test_mismatch_of_fresh_and_of_stale_tokens_is_told_apart() -> None:
    fresh, stale = diagnose([[0.0] * 4], behaviour=-1.5), diagnose([[0.0] * 4], step=2, behaviour=-1.5)
    assert (fresh["mismatch/mean_lag0"], fresh["mismatch/mean_stale"]) == pytest.approx((0.5, 0.0))
    assert (stale["mismatch/mean_lag0"], stale["mismatch/mean_stale"]) == pytest.approx((0.0, 0.5))


def test_a_window_without_a_trained_token_gives_zeros() -> None:
    found = diagnose([[float("nan")]])
    assert all(value == 0.0 for value in found.values())


def test_trained_tokens_are_counted_by_staleness() -> None:
    found = diagnose([[0.5, 0.5, 0.5]], step=2)
    lags = {key: value for key, value in found.items() if key.startswith("staleness/lag_")}
    assert lags == {"staleness/lag_0": 0.0, "staleness/lag_1": 0.0, "staleness/lag_2": 3.0}
