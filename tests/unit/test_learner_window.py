"""What a step trains on does not depend on how its window is split, and everything masked is counted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.collate import PackedBatch, collate, pack
from learner.facts import REVERSE_KL, TEACHER_ENTROPY, StudentValues
from learner.loss import Objective
from learner.metrics import StepTokens, step_metrics
from learner.window import Window, prepare_window
from settings.objective import ImportanceConfig, MasksConfig, ObjectiveConfig, SurrogateConfig, TokenWeightsConfig
from tests.examples import examples
from tests.unit.test_learner_scene import ALONE, LENGTHS, STOPS, scored_table

NUM_TOKENS = sum(response for _, response in LENGTHS)


def objective(*, special_token_ids: Sequence[int] = (), **sections: dict[str, Any]) -> Objective:
    built = Objective(
        ObjectiveConfig.model_validate({"name": "power", **sections.get("objective", {})}),
        ImportanceConfig.model_validate({"name": "none", **sections.get("importance", {})}),
        masks=MasksConfig.model_validate(sections.get("masks", {})),
        token_weights=TokenWeightsConfig.model_validate(sections.get("token_weights", {})),
        surrogate=SurrogateConfig.model_validate(sections.get("surrogate", {})),
        special_token_ids=special_token_ids,
    )
    built.begin_step(5, 10)
    return built


def by_content(batch: PackedBatch, salt: int) -> Tensor:
    """Numbers in (0, 1) that depend on the token alone, and so not on the micro-batch it is in."""
    return (batch.behaviour_logp_T.double() * (12.9898 + salt)).sin().mul(43758.5453).frac().abs().float()


def evaluate(batch: PackedBatch) -> StudentValues:
    """A student and a teacher whose values depend on each token's own content."""
    logp_T, entropy_T = -3 * by_content(batch, 1) - 1e-3, 2 * by_content(batch, 2)
    facts = {REVERSE_KL: by_content(batch, 3), TEACHER_ENTROPY: by_content(batch, 4)}
    return StudentValues(logp_T, entropy_T, facts=facts)


def windows(loss: Objective, *, ends_with: int | None = None) -> list[tuple[Window, dict[str, float], Tensor]]:
    """The window whole and split, with the metrics and the gradient by log-prob in the order of the tokens."""
    table = scored_table(LENGTHS, ends_with=ends_with)
    found = []
    for max_tokens in (1000, 1, 30, 75):
        batches = collate([table], stop_mode="mask", stops=STOPS, max_tokens=max_tokens)
        window = prepare_window(loss, batches, evaluate=evaluate, padding=pack([]), ranks=ALONE)
        losses, gradients = [], {}
        for batch, fixed in zip(window.batches, window.fixed, strict=True):
            values = evaluate(batch)
            logp_T = values.logp_T.clone().requires_grad_()
            result = loss.micro_batch_loss(
                batch,
                logp_T,
                values.entropy_T,
                counts=window.counts,
                statistics_S=window.statistics_S,
                fixed=fixed,
            )
            (gradient_T,) = torch.autograd.grad(result.loss, logp_T)
            gradients |= dict(zip(batch.behaviour_logp_T.tolist(), gradient_T.tolist(), strict=True))
            losses.append(result.detached())
        metrics = step_metrics(StepTokens(window.batches, losses, step=5), importance_cap=2.0, ranks=ALONE)
        in_order = [gradients[key] for key in sorted(gradients)]
        found.append((window, metrics, torch.tensor(in_order, dtype=torch.float64)))
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "entropy_top": {"masks": {"selection": "entropy_top", "top_fraction": 0.3}},
    "tip": {"masks": {"selection": "tip", "keep": 0.4}},
    "fire_opd mask": {"masks": {"selection": "fire_opd", "lowest_quantile": 0.3}},
    "fire_opd mask with zscore": {"masks": {"selection": "fire_opd"}, "objective": {"normaliser": "zscore"}},
    "reopold, floor": {"objective": {"name": "reopold", "switch_step": 6}},
    "reopold, entropy": {"objective": {"name": "reopold", "switch_step": 5}},
    "iw_opd": {"token_weights": {"name": "iw_opd"}},
    "fire_opd weight": {"token_weights": {"name": "fire_opd"}},
    "returns": {"objective": {"discount": 0.5, "normaliser": "zscore"}},
    "decoupled_ppo": {"surrogate": {"name": "decoupled_ppo", "eps": 0.2}},
    "ppo": {"surrogate": {"name": "ppo", "eps": 0.2}},
    "decoupled weight": {"importance": {"name": "decoupled"}},
}


def build(option: str) -> Objective:
    return objective(**OPTIONS[option])


@pytest.mark.parametrize("option", OPTIONS)
def test_any_split_of_the_window_gives_the_same_gradient_and_metrics(option: str) -> None:
    whole, *splits = windows(build(option), ends_with=62)
    assert [len(window.batches) for window, *_ in splits] == [7, 3, 2]
    assert whole[2].any()
    for window, metrics, gradient in splits:
        assert window.counts.num_tokens == whole[0].counts.num_tokens
        assert (gradient - whole[2]).norm() <= 1e-5 * whole[2].norm()
        assert metrics == pytest.approx(whole[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("entropy_top", round(0.3 * NUM_TOKENS + 0.49)), ("tip", round(0.4 * NUM_TOKENS + 0.49))],
)
def test_a_selection_keeps_its_share_of_the_window_and_is_the_denominator(option: str, expected: int) -> None:
    for window, metrics, _ in windows(build(option)):
        assert window.counts.num_tokens == expected
        assert metrics["tokens_trained"] == expected
        assert metrics["masked/selection"] == NUM_TOKENS - expected


def test_reopold_drops_tokens_below_its_floor_first_and_chooses_by_entropy_later() -> None:
    window, metrics, _ = windows(build("reopold, floor"))[0]
    (batch,) = window.batches
    log_ratio_T = batch.teacher_logp_T - evaluate(batch).logp_T
    floor = torch.tensor(0.3).log() / 0.7
    assert batch.response_mask_T.tolist() == (log_ratio_T >= floor).tolist()
    assert metrics["masked/selection"] == (log_ratio_T < floor).sum() > 0
    later, _, _ = windows(build("reopold, entropy"))[0]
    assert later.counts.num_tokens == round(0.2 * NUM_TOKENS + 0.49)
    entropy_T, kept_T = evaluate(later.batches[0]).entropy_T, later.batches[0].response_mask_T
    assert entropy_T[kept_T].min() >= entropy_T[~kept_T].max()


def test_fire_opd_drops_the_responses_that_the_teacher_finds_least_likely() -> None:
    window, metrics, _ = windows(build("fire_opd mask"))[0]
    (batch,) = window.batches
    mean_B = batch.unpack(batch.teacher_logp_T).sum(-1) / batch.response_length_B
    is_kept_B = batch.unpack(batch.response_mask_T).any(-1)
    assert mean_B[~is_kept_B].max() < mean_B[is_kept_B].min()
    assert (~is_kept_B).sum() == 2
    assert metrics["masked/selection"] == batch.response_length_B[~is_kept_B].sum()


def test_special_tokens_go_where_they_come_first_and_truncated_responses_go_whole() -> None:
    table = scored_table([(2, 6), (3, 4)])
    rows = table.to_pylist()
    rows[0]["response_token_ids"] = [7, 9, 7, 9, 9, 4]
    rows[1]["response_token_ids"] = [1, 2, 9, 3]
    for row, reason in zip(rows, ("stop", "length"), strict=True):
        row["teacher_target_ids"], row["finish_reason"] = row["response_token_ids"], reason
    table = type(table).from_pylist(rows, schema=table.schema)
    loss = objective(masks={"drop_truncated": True}, special_token_ids=[9, 7, 9])
    (batch,) = collate([table], stop_mode="raw", stops=STOPS, max_tokens=100)
    window = prepare_window(loss, [batch], evaluate=evaluate, padding=pack([]), ranks=ALONE)
    (masked,) = window.batches
    assert masked.response_mask_T.tolist() == [False, False, True, True, True, True] + [False] * 4
    assert masked.masked_by_T.tolist() == [2, 2, 0, 0, 0, 0, 3, 3, 2, 3]
    assert window.counts.num_tokens == 4
    result = loss.micro_batch_loss(masked, evaluate(masked).logp_T, torch.zeros(10), counts=window.counts)
    metrics = step_metrics(StepTokens([masked], [result], step=0), importance_cap=2.0, ranks=ALONE)
    counted = {name: metrics[f"masked/{name}"] for name in ("stop", "special", "truncated", "selection")}
    assert counted == {"stop": 0, "special": 3, "truncated": 3, "selection": 0}


@pytest.mark.parametrize("option", ["entropy_top", "tip", "fire_opd mask", "reopold, floor", "reopold, entropy"])
def test_a_token_that_is_not_finite_spoils_no_selection_and_is_counted_as_such(option: str) -> None:
    (batch,) = collate([scored_table(LENGTHS)], stop_mode="raw", stops=STOPS, max_tokens=1000)
    batch = replace(batch, teacher_logp_T=batch.teacher_logp_T.index_fill(0, torch.tensor(3), torch.nan))

    def spoilt(batch: PackedBatch) -> StudentValues:
        values = evaluate(batch)
        facts = {name: value_T.index_fill(0, torch.tensor(3), torch.nan) for name, value_T in values.facts.items()}
        return replace(values, facts=facts)

    loss = build(option)
    window = prepare_window(loss, [batch], evaluate=spoilt, padding=pack([]), ranks=ALONE)
    (masked,) = window.batches
    values = evaluate(batch)
    result = loss.micro_batch_loss(masked, values.logp_T, values.entropy_T, counts=window.counts)
    assert result.loss.isfinite()
    assert not result.is_trained_T[3]
    assert 0 < result.is_trained_T.sum() < NUM_TOKENS - 1


@given(discount=st.floats(0.01, 1.0), seed=st.integers(0, 2**16))
@examples(25)
def test_a_return_is_the_discounted_sum_of_the_rewards_that_follow_in_the_same_response(
    discount: float, seed: int
) -> None:
    (batch,) = collate([scored_table(LENGTHS, seed=seed)], stop_mode="raw", stops=STOPS, max_tokens=1000)
    values = evaluate(batch)
    logp_T = values.logp_T.clone().requires_grad_()
    loss = objective(objective={"discount": discount})
    window = prepare_window(loss, [batch], evaluate=evaluate, padding=pack([]), ranks=ALONE)
    result = loss.micro_batch_loss(batch, logp_T, values.entropy_T, counts=window.counts)
    (gradient_T,) = torch.autograd.grad(result.loss, logp_T)
    expected, start = [], 0
    for _, length in LENGTHS:
        following = 0.0
        for reward in reversed(result.reward_T[start : start + length].tolist()):
            following = reward + discount * following
            expected.insert(start, following)
        start += length
    torch.testing.assert_close(-gradient_T * NUM_TOKENS, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_only_what_needs_the_whole_window_pays_a_second_forward() -> None:
    paying = {option for option in OPTIONS if build(option).uses_window_statistics}
    free = {"fire_opd mask", "iw_opd", "ppo"}
    assert paying == {*OPTIONS} - free
    assert not objective(masks={"drop_truncated": True}, objective={"discount": 0.5}).uses_window_statistics


@pytest.mark.parametrize("name", ["unclipped", "ppo", "decoupled_ppo", "dppo"])
def test_on_fresh_tokens_every_surrogate_has_the_gradient_of_the_policy_gradient(name: str) -> None:
    (batch,) = collate([scored_table(LENGTHS)], stop_mode="raw", stops=STOPS, max_tokens=1000)
    values = evaluate(batch)
    fresh = replace(batch, behaviour_logp_T=values.logp_T)
    gradients = []
    for surrogate in ("policy_gradient", name):
        loss = objective(surrogate={"name": surrogate})
        window = prepare_window(loss, [fresh], evaluate=lambda _: values, padding=pack([]), ranks=ALONE)
        logp_T = values.logp_T.clone().requires_grad_()
        result = loss.micro_batch_loss(
            fresh, logp_T, values.entropy_T, counts=window.counts, fixed=window.fixed[0]
        )
        gradients.append(torch.autograd.grad(result.loss, logp_T)[0])
    torch.testing.assert_close(*gradients)


def test_extremes_of_the_importance_weight_are_reported() -> None:
    (batch,) = collate([scored_table([(2, 3)])], stop_mode="raw", stops=STOPS, max_tokens=100)
    batch = replace(batch, behaviour_logp_T=torch.tensor([-1.0, -2.0, -9.0]))
    loss = objective(importance={"name": "icepop"})
    window = prepare_window(loss, [batch], evaluate=evaluate, padding=pack([]), ranks=ALONE)
    result = loss.micro_batch_loss(batch, torch.tensor([-1.5, -1.5, -1.5]), torch.zeros(3), counts=window.counts)
    metrics = step_metrics(StepTokens([batch], [result], step=0), importance_cap=2.0, ranks=ALONE)
    assert metrics["importance/frac_eq_0"] == pytest.approx(1 / 3)
    assert metrics["importance/min"] == 0
    assert metrics["importance/max"] == pytest.approx(torch.tensor(0.5).exp().item())


def test_stop_tokens_are_reported_where_they_are_trained() -> None:
    (batch,) = collate(
        [scored_table([(2, 3), (2, 2)], ends_with=62)], stop_mode="raw", stops=STOPS, max_tokens=100
    )
    loss, values = objective(), evaluate(batch)
    window = prepare_window(loss, [batch], evaluate=evaluate, padding=pack([]), ranks=ALONE)
    result = loss.micro_batch_loss(batch, values.logp_T, values.entropy_T, counts=window.counts)
    metrics = step_metrics(StepTokens([batch], [result], step=0), importance_cap=2.0, ranks=ALONE)
    assert metrics["stop/present_frac"] == 1
    assert metrics["stop/reward_mean"] == pytest.approx((result.reward_T[2] + result.reward_T[4]).item() / 2)
