"""The loss of a window does not depend on how it is split, and bad tokens are dropped and counted."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from learner.collate import PackedBatch, collate
from learner.log_probs import HeadLimits
from learner.loss import MicroBatchLoss, Objective
from learner.metrics import StepTokens, abs_quantile, step_metrics
from learner.student import StudentModel
from settings.objective import ImportanceConfig, ObjectiveConfig
from tests.unit.test_learner_scene import (
    ALONE,
    LENGTHS,
    STOPS,
    VOCAB_SIZE,
    counts_of,
    replace_column,
    scored_table,
    tiny_qwen3,
)


def objective(**fields: object) -> Objective:
    settings = {"name": "power", "alpha": 1.0, "rescale": "none", **fields}
    importance = ImportanceConfig.model_validate({"name": "truncated", "low": 0.0, "high": 2.0})
    return Objective(ObjectiveConfig.model_validate(settings), importance)


def window(
    student: StudentModel, batches: Sequence[PackedBatch], loss: Objective
) -> tuple[list[MicroBatchLoss], Tensor]:
    """Run a whole step's forward and backward; returns the losses and the flat gradient."""

    def log_probs(batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return student(batch.input_ids_N, batch.position_ids_N, batch.source_positions_T, batch.target_ids_T)

    counts, statistics_S = counts_of(batches), None
    if loss.uses_window_statistics:
        with torch.no_grad():
            parts = [loss.statistics(batch, log_probs(batch)[0]) for batch in batches]
        statistics_S = loss.normaliser.merge(*parts)
    student.zero_grad()
    losses = []
    for batch in batches:
        losses.append(loss.micro_batch_loss(batch, *log_probs(batch), counts=counts, statistics_S=statistics_S))
        losses[-1].loss.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    return losses, torch.cat([gradient.flatten() for gradient in gradients]).double()


@pytest.mark.parametrize("aggregate", ["window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum"])
@pytest.mark.parametrize("normaliser", ["none", "zscore", "sign_max_abs"])
def test_any_split_into_micro_batches_gives_the_same_gradient(aggregate: str, normaliser: str) -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE, chunk_tokens=16))
    table = scored_table(LENGTHS, ends_with=62)
    loss = objective(aggregate=aggregate, normaliser=normaliser)
    whole, *splits = [
        window(student, collate([table], stop_mode="mask", stops=STOPS, max_tokens=max_tokens), loss)
        for max_tokens in (1000, 1, 30, 75)
    ]
    assert [len(losses) for losses, _ in splits] == [7, 3, 2]
    for losses, gradient in splits:
        assert (gradient - whole[1]).norm() <= 1e-6 * whole[1].norm()
        total = torch.stack([part.loss for part in losses]).sum()
        torch.testing.assert_close(total, whole[0][0].loss, rtol=1e-5, atol=1e-6)


def one_batch(
    teacher: list[float], behaviour: list[float], *, stop_mode: str = "raw", ends_with: int | None = None
) -> PackedBatch:
    table = scored_table([(2, len(teacher))], ends_with=ends_with, stop_mode=stop_mode)  # pyright: ignore[reportArgumentType]
    table = replace_column(table, "teacher_log_probs", [teacher])
    table = replace_column(table, "behaviour_log_probs", [behaviour])
    (batch,) = collate([table], stop_mode=stop_mode, stops=STOPS, max_tokens=100)  # pyright: ignore[reportArgumentType]
    return batch


def on_log_probs(
    batch: PackedBatch, logp: list[float], loss: Objective
) -> tuple[MicroBatchLoss, Tensor, dict[str, float]]:
    """Return the loss, its gradient with respect to the log-probs, and the metrics."""
    logp_T = torch.tensor(logp, requires_grad=True)
    result = loss.micro_batch_loss(batch, logp_T, torch.ones(len(logp)), counts=counts_of([batch]))
    (gradient_T,) = torch.autograd.grad(result.loss, logp_T)
    tokens = StepTokens([batch], [result.detached()], step=3)
    return result, gradient_T, step_metrics(tokens, importance_cap=loss.importance_cap, ranks=ALONE)


def test_loss_and_gradient_match_the_closed_form() -> None:
    logp, teacher, behaviour = [-1.0, -0.5, -2.0], [-0.5, -1.0, -2.0], [-1.0, -1.0, -4.0]
    result, gradient_T, metrics = on_log_probs(one_batch(teacher, behaviour), logp, objective())
    reward = torch.tensor(teacher).exp() - torch.tensor(logp).exp()
    weight = (torch.tensor(logp) - torch.tensor(behaviour)).exp().clamp(max=2.0)
    torch.testing.assert_close(gradient_T, -weight * reward / 3)
    torch.testing.assert_close(result.loss, -(weight * reward * torch.tensor(logp)).sum() / 3)
    assert metrics["reward/mean"] == pytest.approx(float(reward.mean()))
    assert metrics["kl/reverse"] == pytest.approx(0.0)
    assert metrics["importance/capped_frac"] == pytest.approx(1 / 3)
    assert metrics["importance/mean"] == pytest.approx(float(weight.mean()))
    mismatch = [math.exp(x) - x - 1 for x in (0.0, 0.5, 2.0)]
    assert metrics["kl/mismatch"] == pytest.approx(sum(mismatch) / 3)
    assert metrics["reward/frac_abs_gt_0.01"] == pytest.approx(2 / 3)
    assert metrics["reward/frac_gt_0"] == pytest.approx(1 / 3)
    assert metrics["staleness/max"] == 3
    assert metrics["response_length/mean"] == 3
    assert metrics["truncated_frac"] == 1
    assert metrics["stop/missing"] == 1


@pytest.mark.parametrize(("teacher", "behaviour"), [(math.nan, -1.0), (-1.0, math.nan)])
def test_a_nan_log_prob_of_teacher_or_behaviour_is_dropped_and_counted(teacher: float, behaviour: float) -> None:
    batch = one_batch([-0.5, teacher, -1.0], [-1.0, behaviour, -1.0])
    result, gradient_T, metrics = on_log_probs(batch, [-1.0, -1.0, -2.0], objective())
    assert result.is_trained_T.tolist() == [True, False, True]
    assert result.loss.isfinite()
    assert gradient_T[1] == 0
    assert metrics["masked/nonfinite"] == 1
    assert metrics["tokens_trained"] == 2


@pytest.mark.parametrize(("name", "num_dropped"), [("power", 0), ("log_ratio", 1)])
def test_an_infinite_teacher_log_prob_is_legal_for_bounded_rewards_only(name: str, num_dropped: int) -> None:
    batch = one_batch([-0.5, float("-inf")], [-1.0, -1.0])
    settings = ObjectiveConfig(name=name)
    loss = Objective(settings, ImportanceConfig.model_validate({"name": "none"}))
    _, gradient_T, metrics = on_log_probs(batch, [-1.0, -1.0], loss)
    assert gradient_T.isfinite().all()
    assert metrics["masked/nonfinite"] == num_dropped


def test_an_infinite_student_log_prob_reaches_no_gradient() -> None:
    batch = one_batch([-0.5, -0.5], [-1.0, -1.0])
    result, gradient_T, metrics = on_log_probs(batch, [-1.0, float("-inf")], objective())
    assert result.loss.isfinite()
    assert gradient_T[1] == 0
    assert metrics["masked/nonfinite"] == 1


def test_a_stop_token_under_mask_gives_no_gradient_and_does_not_count() -> None:
    batch = one_batch([-0.5, -0.5], [-1.0, -1.0], stop_mode="mask", ends_with=62)
    _, gradient_T, metrics = on_log_probs(batch, [-1.0, -1.0], objective())
    reward = torch.tensor(-0.5).exp() - torch.tensor(-1.0).exp()
    torch.testing.assert_close(gradient_T, torch.stack([-reward, torch.tensor(0.0)]))
    assert metrics["masked/stop"] == 1
    assert metrics["tokens_trained"] == 1
    assert metrics["stop/missing"] == 0


def test_an_empty_window_gives_zero_loss_and_zero_gradient() -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE, chunk_tokens=16))
    table = scored_table([(3, 1), (2, 1)], ends_with=62)
    batches = collate([table], stop_mode="mask", stops=STOPS, max_tokens=100)
    losses, gradient = window(student, batches, objective())
    assert counts_of(batches).num_tokens == 0
    assert losses[0].loss == 0
    assert not gradient.any()
    metrics = step_metrics(StepTokens(batches, losses, step=0), importance_cap=2.0, ranks=ALONE)
    assert metrics["tokens_trained"] == 0
    assert metrics["reward/abs_p95"] == 0


def test_mismatch_is_reported_apart_for_tokens_of_the_current_version() -> None:
    batch = one_batch([-0.5, -0.5], [-1.5, -1.0])
    loss = objective()
    result = loss.micro_batch_loss(batch, torch.tensor([-1.0, -1.0]), torch.ones(2), counts=counts_of([batch]))
    fresh = step_metrics(StepTokens([batch], [result], step=0), importance_cap=2.0, ranks=ALONE)
    stale = step_metrics(StepTokens([batch], [result], step=1), importance_cap=2.0, ranks=ALONE)
    assert fresh["mismatch/max_lag0"] == pytest.approx(0.5)
    assert stale["mismatch/max_lag0"] == 0
    assert stale["kl/mismatch"] == fresh["kl/mismatch"] == fresh["kl/mismatch_lag0"]


def test_the_quantile_interpolates_over_absolute_values() -> None:
    values = torch.arange(-100.0, 1.0)
    assert abs_quantile(values, 0.95, ranks=ALONE) == pytest.approx(95.0)
