"""Masks, token weights, importance weights of responses, surrogates, returns and outcome advantages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewards import (
    IMPORTANCE_WEIGHTS,
    SURROGATES,
    TOKEN_MASKS,
    TOKEN_REWARDS,
    TOKEN_WEIGHTS,
    group_advantage,
    mix_outcome,
    return_to_go,
    top_fraction_threshold,
)
from rewards.surrogates import dppo_mask
from tests.examples import examples

unhurried = examples(40)
values = st.floats(-3.0, 3.0)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def all_kept(numbers: Tensor) -> Tensor:
    return torch.ones_like(numbers, dtype=torch.bool)


def gradient(loss_BT: Tensor, logp: Tensor) -> Tensor:
    return torch.autograd.grad(loss_BT.sum(), logp, retain_graph=True)[0]


# -- masks ------------------------------------------------------------------------------------------------


def test_a_special_token_in_a_masked_slot_is_not_its_first_occurrence() -> None:
    ids, mask = torch.tensor([[27, 5, 27, 27]]), torch.tensor([[False, True, True, True]])
    kept = TOKEN_MASKS["special_tokens"](mask, response_ids_BT=ids, special_token_ids=[27])
    assert kept.tolist() == [[False, True, False, True]]


def test_a_truncated_response_is_dropped_whole() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    kept = TOKEN_MASKS["truncated"](mask, is_truncated_B=torch.tensor([True, False]))
    assert kept.tolist() == [[False, False], [True, False]]


def test_tokens_that_tie_at_the_threshold_are_all_kept() -> None:
    entropy = row(0.1, 0.7, 0.7, 0.3)
    kept = TOKEN_MASKS["entropy_top"](all_kept(entropy), student_entropy_BT=entropy, top_fraction=0.25)
    assert kept.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("fraction", "count", "kept"), [(0.07, 100, 7), (0.2, 9, 2), (1.0, 4, 4), (0.01, 5, 1)])
def test_the_share_is_rounded_up_to_whole_tokens(fraction: float, count: int, kept: int) -> None:
    entropy = torch.arange(float(count)).unsqueeze(0)
    mask = TOKEN_MASKS["entropy_top"](all_kept(entropy), student_entropy_BT=entropy, top_fraction=fraction)
    assert mask.sum().item() == kept


def test_a_threshold_of_the_window_makes_its_parts_agree_with_the_whole() -> None:
    entropy = torch.arange(12.0).reshape(3, 4)
    threshold = top_fraction_threshold(entropy, all_kept(entropy), 0.25)
    whole = TOKEN_MASKS["entropy_top"](all_kept(entropy), student_entropy_BT=entropy, top_fraction=0.25)
    parts = [
        TOKEN_MASKS["entropy_top"](all_kept(part), student_entropy_BT=part, entropy_threshold=threshold)
        for part in entropy.split(1)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_reopold_changes_its_mask_at_the_switch_step() -> None:
    teacher, student = row(-5.0, -0.5, -0.5), row(-0.5, -0.5, -1.0)
    inputs = {"teacher_logp_BT": teacher, "student_logp_BT": student}
    mask = TOKEN_MASKS["reopold"]
    assert mask(all_kept(teacher), **inputs, step=9, switch_step=10).tolist() == [[False, True, True]]
    entropy = row(2.0, 0.1, 0.2)
    switched = mask(all_kept(teacher), **inputs, student_entropy_BT=entropy, step=10, switch_step=10)
    assert switched.tolist() == [[True, False, False]]
    with pytest.raises(ValueError, match="student_entropy_BT must be given"):
        mask(all_kept(teacher), **inputs, step=10, switch_step=10)


def test_fire_opd_drops_the_responses_that_the_teacher_finds_least_likely() -> None:
    teacher = torch.tensor([[-1.0, -1.0], [-5.0, 0.0], [-0.2, -0.2], [-0.1, -0.1], [-9.0, -9.0], [-0.3, -0.3]])
    mask = all_kept(teacher)
    mask[4] = False
    kept = TOKEN_MASKS["fire_opd"](mask, teacher_logp_BT=teacher)
    assert kept.any(dim=-1).tolist() == [True, False, True, True, False, True]


def test_tip_keeps_tokens_that_lead_in_either_measure() -> None:
    entropy, divergence = row(0.0, 3.0, 1.0, 1.0), row(5.0, 0.0, 1.0, 0.5)
    kept = TOKEN_MASKS["tip"](all_kept(entropy), student_entropy_BT=entropy, reverse_kl_BT=divergence)
    assert kept.tolist() == [[True, True, False, False]]


# -- weights of tokens ------------------------------------------------------------------------------------


@unhurried
@given(st.lists(values, min_size=1, max_size=8), st.floats(0.0, 2.0))
def test_iw_opd_weights_fall_along_the_response_and_stay_within_their_range(
    advantage: list[float], gamma: float
) -> None:
    weight = TOKEN_WEIGHTS["iw_opd"](all_kept(row(*advantage)), advantage_BT=row(*advantage), gamma=gamma)[0]
    assert (weight.diff() <= 1e-12).all()
    assert weight[0].item() == pytest.approx(1.0 + gamma)
    assert (weight >= 1.0 - 1e-12).all()


def test_fire_opd_weights_have_mean_one_and_favour_a_sure_teacher_and_an_unsure_student() -> None:
    teacher, student = row(0.0, 2.0, 0.0, 2.0), row(1.0, 1.0, 0.0, 0.0)
    weight = TOKEN_WEIGHTS["fire_opd"](all_kept(teacher), teacher_entropy_BT=teacher, student_entropy_BT=student)
    torch.testing.assert_close(weight, row(4.0, 2.0, 2.0, 1.0) / 2.25)


# -- importance weights -----------------------------------------------------------------------------------


BEHAVIOUR = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
CURRENT = torch.tensor([[-0.5, -0.9], [-1.0, -3.0]], dtype=torch.float64)


def importance(name: str, **params: float) -> list[list[float]]:
    return IMPORTANCE_WEIGHTS[name](CURRENT, BEHAVIOUR, all_kept(CURRENT), **params).tolist()


def test_the_ratio_of_a_response_is_shared_by_its_tokens() -> None:
    above, below = math.exp(0.6), math.exp(-2.0)
    assert importance("sequence", cap=1.5)[0] == [1.5, 1.5]
    assert importance("sequence")[1] == pytest.approx([below, below])
    assert importance("sequence_mask", cap=1.5)[0] == [0.0, 0.0]
    assert importance("sequence_mask")[0] == pytest.approx([above, above])


def test_a_response_is_rejected_by_its_mean_mismatch() -> None:
    assert importance("geometric_mask", low=0.5, high=2.0) == [[1.0, 1.0], [0.0, 0.0]]
    assert importance("geometric_mask", low=0.3, high=1.2) == [[0.0, 0.0], [1.0, 1.0]]
    assert importance("k3_mask", high=0.1) == [[1.0, 1.0], [0.0, 0.0]]


def test_icepop_and_decoupled_drop_what_truncated_clips() -> None:
    logp, behaviour = row(-0.1, -1.0, -5.0), row(-3.0, -1.2, -1.0)
    keep = all_kept(logp)
    torch.testing.assert_close(IMPORTANCE_WEIGHTS["icepop"](logp, behaviour, keep), row(0, math.exp(0.2), 0))
    weight = IMPORTANCE_WEIGHTS["decoupled"](behaviour, behaviour, keep, proximal_logp_BT=logp)
    torch.testing.assert_close(weight, row(0, math.exp(0.2), math.exp(-4.0)))
    assert IMPORTANCE_WEIGHTS["icepop"](row(math.nan), row(-1.0), all_kept(row(0.0))).isnan().all()


# -- surrogates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURROGATES)
@unhurried
@given(st.lists(st.tuples(st.floats(-5.0, 0.0), values), min_size=1, max_size=5))
def test_every_surrogate_has_the_policy_gradient_where_all_policies_agree(
    name: str, tokens: list[tuple[float, float]]
) -> None:
    logp = row(*(logp for logp, _ in tokens)).requires_grad_()
    advantage = row(*(advantage for _, advantage in tokens))
    entry = SURROGATES[name]
    extras = {extra: logp.detach() for extra in entry.extras}
    loss = entry(logp, advantage, all_kept(logp), **extras)
    torch.testing.assert_close(gradient(loss, logp), -advantage)


@unhurried
@given(st.floats(-5.0, 0.0), st.floats(-5.0, 0.0), values)
def test_the_unclipped_surrogate_has_the_gradient_of_the_weighted_policy_gradient(
    current: float, behaviour: float, size: float
) -> None:
    logp, advantage = row(current).requires_grad_(), row(size)
    mask = all_kept(advantage)
    weight = IMPORTANCE_WEIGHTS["unclipped"](logp, row(behaviour), mask)
    weighted = SURROGATES["policy_gradient"](logp, weight * advantage, mask)
    unclipped = SURROGATES["unclipped"](logp, advantage, mask, behaviour_logp_BT=row(behaviour))
    torch.testing.assert_close(gradient(unclipped, logp), gradient(weighted, logp))


def test_ppo_stops_at_the_clip_in_the_direction_of_the_advantage_only() -> None:
    logp = row(-0.5, -0.5, -2.0, -2.0).requires_grad_()
    advantage = row(1.0, -1.0, 1.0, -1.0)
    loss = SURROGATES["ppo"](logp, advantage, all_kept(advantage), behaviour_logp_BT=torch.full_like(logp, -1.0))
    assert (gradient(loss, logp) != 0.0).tolist() == [[False, True, True, False]]


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    logp, behaviour = row(-0.1, -0.1), row(-5.0, -5.0)
    loss = SURROGATES["ppo"](logp, row(-1.0, 1.0), all_kept(logp), behaviour_logp_BT=behaviour, c=3.0)
    torch.testing.assert_close(loss, row(3.0, -1.2))


def test_dppo_drops_tokens_that_moved_too_far_along_their_advantage() -> None:
    logp, behaviour = row(-0.1, -0.1, -3.0, -3.0), row(-1.0, -1.0, -0.5, -0.5)
    advantage = row(1.0, -1.0, -1.0, 1.0)
    keep = dppo_mask(logp, advantage, all_kept(logp), behaviour_logp_BT=behaviour)
    assert keep.tolist() == [[False, True, False, True]]
    loss = SURROGATES["dppo"](logp, advantage, all_kept(logp), behaviour_logp_BT=behaviour)
    assert (loss != 0.0).tolist() == keep.tolist()


def test_a_log_ratio_beyond_the_clamp_gives_a_finite_loss() -> None:
    logp, behaviour = row(0.0, -900.0), row(-900.0, 0.0)
    for name in ("unclipped", "ppo", "dppo"):
        loss = SURROGATES[name](logp, row(-1.0, 1.0), all_kept(logp), behaviour_logp_BT=behaviour)
        assert loss.isfinite().all()


def test_several_samples_per_position_estimate_the_reverse_kl_gradient() -> None:
    """Tokens that are drawn in proportion to their probability: the estimate is then exact."""
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log().requires_grad_()
    log_t = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    drawn = torch.tensor([[0, 1, 1, 1]])
    log_p = student.log_softmax(-1)
    logp = log_p.gather(-1, drawn)
    advantage = TOKEN_REWARDS["log_ratio"](log_t.gather(-1, drawn), logp, all_kept(logp))
    loss = SURROGATES["unclipped"](logp, advantage, all_kept(logp), behaviour_logp_BT=logp.detach()).mean(-1)
    exact = (log_p.exp() * (log_p - log_t)).sum(-1)
    torch.testing.assert_close(gradient(loss, student), gradient(exact, student))


# -- returns and outcomes ---------------------------------------------------------------------------------


@unhurried
@given(st.lists(values, min_size=1, max_size=9), st.floats(0.0, 1.0))
def test_a_return_is_the_reward_and_the_discounted_return_of_the_next_token(
    rewards: list[float], discount: float
) -> None:
    returns = return_to_go(row(*rewards), all_kept(row(*rewards)), discount=discount)[0].tolist()
    for reward, now, later in zip(rewards, returns, [*returns[1:], 0.0], strict=True):
        assert now == pytest.approx(reward + discount * later, abs=1e-12)


def test_masked_rewards_are_no_part_of_a_return() -> None:
    mask = torch.tensor([[True, False, True, False]])
    returns = return_to_go(row(1.0, math.nan, 4.0, math.inf), mask, discount=0.5)
    assert returns.tolist() == [[2.0, 0.0, 4.0, 0.0]]
    with pytest.raises(ValueError, match=r"discount must be >= 0 and <= 1, got 1\.1"):
        return_to_go(row(1.0), all_kept(row(1.0)), discount=1.1)


@pytest.mark.parametrize("std", ["sample", "population", "none"])
@pytest.mark.parametrize("outcomes", [[1.0], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_a_group_without_differences_has_no_advantage(std: str, outcomes: list[float]) -> None:
    assert group_advantage(torch.tensor([outcomes]), std=std).abs().max().item() == 0.0


def test_groups_are_normalised_one_by_one() -> None:
    advantage = group_advantage(torch.tensor([[1.0, 0.0], [5.0, 5.0]]), std="population", eps=0.0)
    assert advantage.tolist() == [[1.0, -1.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="std must be one of sample, population, none, got 'batch'"):
        group_advantage(torch.zeros(1, 2), std="batch")


def test_an_outcome_is_shared_by_the_tokens_of_its_response() -> None:
    reward = TOKEN_REWARDS["log_ratio"](row(-1.0, -2.0, -3.0), row(-1.5, -1.0, -1.0), all_kept(row(0, 0, 0)))
    mask = torch.tensor([[True, True, False]])
    mixed = mix_outcome(torch.tensor([2.0], dtype=torch.float64), reward, mask, rl_coef=0.5, opd_coef=2.0)
    torch.testing.assert_close(mixed, row(2.0, -1.0, 0.0))
