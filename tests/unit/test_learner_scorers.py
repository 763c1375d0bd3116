"""Reference model, graded outcomes and weights of teachers in the loss, against numbers computed by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from learner.collate import PackedBatch, collate, pack
from learner.loss import MicroBatchLoss, Objective, WindowCounts
from learner.metrics import StepTokens, outcome_metrics, teacher_metrics
from settings.objective import ImportanceConfig, ObjectiveConfig, OutcomeConfig
from settings.teachers import TeacherShare
from tests.unit.test_learner_scene import ALONE, STOPS, counts_of, replace_column, scored_table
from transport.batches import OUTCOME, REFERENCE, TeacherSignal

REFERENCED, GRADED = TeacherSignal(has_reference=True), TeacherSignal(has_outcome=True)
NO_WEIGHT = ImportanceConfig(name="none")


def collated(table: pa.Table, signal: TeacherSignal, *, max_tokens: int = 100, **given: Any) -> list[PackedBatch]:
    return collate([table], stop_mode="raw", stops=STOPS, max_tokens=max_tokens, signal=signal, **given)


def with_reference(table: pa.Table, values: list[list[float]]) -> pa.Table:
    return table.append_column(REFERENCE, pa.array(values, REFERENCE.type))


def graded(outcomes: Sequence[float], slots: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    table = scored_table([(2, length) for length in lengths])
    return replace_column(table, "slot", list(slots)).append_column(OUTCOME, pa.array(outcomes, OUTCOME.type))


def losses_of(
    objective: Objective, batches: Sequence[PackedBatch], logp: Sequence[float]
) -> tuple[list[MicroBatchLoss], list[Tensor]]:
    """The losses of micro-batches whose tokens all have these log-probs in turn, and their gradients."""
    counts = counts_of(batches)
    losses, gradients = [], []
    for batch in batches:
        num = len(batch.target_ids_T)
        logp_T = torch.tensor(logp).repeat(num)[:num].requires_grad_()
        losses.append(objective.micro_batch_loss(batch, logp_T, torch.ones(num), counts=counts))
        gradients += torch.autograd.grad(losses[-1].loss, logp_T)
    return losses, gradients


def g_opd(**parameters: float) -> Objective:
    return Objective(ObjectiveConfig.model_validate({"name": "g_opd", **parameters}), NO_WEIGHT)


def three_tokens(teacher: list[float], reference: list[float]) -> PackedBatch:
    table = replace_column(scored_table([(2, 3)]), "teacher_log_probs", [teacher])
    (batch,) = collated(with_reference(table, [reference]), REFERENCED)
    return batch


def test_the_reference_enters_the_reward_of_every_token() -> None:
    batch = three_tokens([-0.5, -1.0, -2.0], [-1.5, -0.25, -3.0])
    [loss], _ = losses_of(g_opd(lambda_=1.5), [batch], [-1.0, -2.0, -4.0])
    # lambda * (teacher - reference) - (student - reference)
    by_hand = [1.5 * 1.0 - 0.5, 1.5 * -0.75 - -1.75, 1.5 * 1.0 - -1.0]
    torch.testing.assert_close(loss.reward_T, torch.tensor(by_hand))


def test_with_lambda_one_the_reference_cancels_and_the_reward_is_the_log_ratio() -> None:
    batch = three_tokens([-0.5, -1.0, -2.0], [-1.5, -0.25, -3.0])
    plain = Objective(ObjectiveConfig(name="log_ratio"), NO_WEIGHT)
    (found, gradient), (expected, expected_gradient) = (
        losses_of(objective, [batch], [-1.0, -2.0, -4.0]) for objective in (g_opd(lambda_=1.0), plain)
    )
    assert torch.equal(found[0].reward_T, expected[0].reward_T)
    assert torch.equal(found[0].loss, expected[0].loss)
    assert torch.equal(gradient[0], expected_gradient[0])


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_token_without_a_finite_reference_is_dropped(bad: float) -> None:
    [loss], [gradient] = losses_of(g_opd(), [three_tokens([-0.5] * 3, [-1.0, bad, -1.0])], [-1.0])
    assert loss.is_trained_T.tolist() == [True, False, True]
    assert loss.loss.isfinite()
    assert gradient[1] == 0


def test_advantages_are_those_of_the_responses_to_one_prompt_however_they_are_packed() -> None:
    # Slot 0: mean 1/2, sample deviation sqrt(1/2). Slot 1: mean 1/3, sample deviation sqrt(1/3). Slot 2: constant.
    outcomes, slots = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1, 1, 2, 2]
    low, high = -(1 / 3) / math.sqrt(1 / 3), (2 / 3) / math.sqrt(1 / 3)
    by_hand = [math.sqrt(0.5), -math.sqrt(0.5), low, high, low, 0.0, 0.0]
    table = graded(outcomes, slots, [3, 1, 4, 1, 5, 9, 2])
    for max_tokens in (1000, 8, 1):
        batches = collated(table, GRADED, max_tokens=max_tokens)
        found = {}
        for batch in batches:
            places = zip(batch.slot_B.tolist(), batch.response_length_B.tolist(), strict=True)
            found |= dict(zip(places, batch.outcome_advantage_B.tolist(), strict=True))
        expected = dict(zip(zip(slots, [3, 1, 4, 1, 5, 9, 2], strict=True), by_hand, strict=True))
        assert found == pytest.approx(expected, abs=1e-5)
        assert outcome_metrics([*batches, pack([])], ranks=ALONE) == pytest.approx(
            {
                "outcome/mean": 4 / 7,
                "outcome/advantage_abs_mean": sum(map(abs, by_hand)) / 7,
                "outcome/constant_groups_frac": 1 / 3,
            },
            abs=1e-5,
        )


def test_a_rank_without_responses_has_outcome_metrics_too() -> None:
    assert set(outcome_metrics([pack([])], ranks=ALONE).values()) == {0.0}


def test_every_token_gets_the_advantage_of_its_response_beside_its_own_reward() -> None:
    (batch,) = collated(graded([1.0, 0.0], [0, 0], [2, 1]), GRADED, outcome_std="none")
    batch = replace(batch, teacher_logp_T=torch.tensor([-0.5, -1.0, -2.0]))
    outcome = OutcomeConfig(rl_coef=2.0, opd_coef=0.5)
    objective = Objective(ObjectiveConfig(name="log_ratio"), NO_WEIGHT, outcome=outcome)
    [loss], [gradient] = losses_of(objective, [batch], [-1.0])
    by_hand = torch.tensor([2 * 0.5 + 0.5 * 0.5, 2 * 0.5 + 0.5 * 0.0, 2 * -0.5 + 0.5 * -1.0])
    torch.testing.assert_close(loss.reward_T, torch.tensor([0.5, 0.0, -1.0]))
    torch.testing.assert_close(gradient, -by_hand / 3)


def test_the_advantage_is_added_after_the_normaliser() -> None:
    (batch,) = collated(graded([1.0, 0.0], [0, 0], [2, 1]), GRADED, outcome_std="none")
    batch = replace(batch, teacher_logp_T=torch.tensor([-0.5, -1.0, -3.0]))
    settings = ObjectiveConfig(name="log_ratio", normaliser="sign_max_abs")
    objective = Objective(settings, NO_WEIGHT, outcome=OutcomeConfig(rl_coef=1.0))
    logp_T = torch.full((3,), -1.0, requires_grad=True)
    statistics_S = objective.statistics(batch, logp_T)
    counts = WindowCounts(3, 2, num_micro_batches=1)
    loss = objective.micro_batch_loss(batch, logp_T, torch.ones(3), counts=counts, statistics_S=statistics_S)
    normalised_T = objective.normaliser.apply(torch.tensor([0.5, 0.0, -2.0]), torch.ones(3).bool(), statistics_S)
    (gradient,) = torch.autograd.grad(loss.loss, logp_T)
    torch.testing.assert_close(loss.reward_T, normalised_T)
    torch.testing.assert_close(gradient, -(normalised_T + torch.tensor([0.5, 0.5, -0.5])) / 3)


def test_only_the_distillation_reward_is_discounted() -> None:
    (batch,) = collated(graded([1.0, 0.0], [0, 0], [2, 1]), GRADED, outcome_std="none")
    batch = replace(batch, teacher_logp_T=torch.tensor([-0.5, -2.0, -3.0]))
    settings = ObjectiveConfig(name="log_ratio", discount=0.5)
    objective = Objective(settings, NO_WEIGHT, outcome=OutcomeConfig(rl_coef=1.0))
    _, [gradient] = losses_of(objective, [batch], [-1.0])
    returns_T = torch.tensor([0.5 - 0.5 * 1.0, -1.0, -2.0])
    torch.testing.assert_close(gradient, -(returns_T + torch.tensor([0.5, 0.5, -0.5])) / 3)


SHARES = {"math": TeacherShare(0, 1.0), "code": TeacherShare(1, 0.25)}


def two_teachers(shares: dict[str, TeacherShare] | None) -> list[PackedBatch]:
    table = replace_column(scored_table([(2, 2), (2, 3)]), "source", ["math", "code"])
    table = replace_column(table, "teacher_log_probs", [[-0.5, -1.0], [-2.0, math.nan, -3.0]])
    return collated(table, TeacherSignal(), share_of_source=shares)


def test_the_weight_of_a_teacher_multiplies_the_loss_of_its_tokens_and_no_denominator() -> None:
    objective = Objective(ObjectiveConfig(name="power"), NO_WEIGHT)
    _, [expected] = losses_of(objective, two_teachers(None), [-1.5, -0.75])
    _, [found] = losses_of(objective, two_teachers(SHARES), [-1.5, -0.75])
    assert expected.bool().tolist() == [True, True, True, False, True]
    torch.testing.assert_close(found, expected * torch.tensor([1.0, 1.0, 0.25, 0.25, 0.25]))


def test_every_teacher_has_its_own_means_over_its_own_tokens() -> None:
    batches = two_teachers(SHARES)
    losses, _ = losses_of(Objective(ObjectiveConfig(name="log_ratio"), NO_WEIGHT), batches, [-1.0])
    tokens = StepTokens(batches, losses, step=0)
    names = ["teacher", "teacher-code", "teacher-idle"]
    assert teacher_metrics(batches, tokens, names=names, ranks=ALONE) == pytest.approx(
        {
            **{"kl/reverse/teacher": -0.25, "kl/reverse/teacher-code": 1.5, "kl/reverse/teacher-idle": 0.0},
            **{"reward/mean/teacher": 0.25, "reward/mean/teacher-code": -1.5, "reward/mean/teacher-idle": 0.0},
            **{"tokens_trained/teacher": 2, "tokens_trained/teacher-code": 2, "tokens_trained/teacher-idle": 0},
        }
    )
