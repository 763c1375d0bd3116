"""What happens to a window of rewards: normalisers, importance weights and aggregation, whole or in parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards import AGGREGATIONS, IMPORTANCE_WEIGHTS, NORMALISERS, aggregate, window_counts

NAN, INF = math.nan, math.inf
unhurried = settings(deadline=None)
WINDOW_NORMALISERS = [name for name, entry in NORMALISERS.items() if entry.uses_window_statistics]


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def all_kept(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def test_zscore_uses_the_population_standard_deviation() -> None:
    reward = row(1.0, 2.0, 3.0, 6.0)
    expected = (reward - 3.0) / math.sqrt(3.5)
    torch.testing.assert_close(NORMALISERS["zscore"](reward, all_kept(reward)), expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, -0.3, 58.71])
def test_zscore_of_a_constant_window_is_zero(constant: float) -> None:
    reward = torch.full((3, 7), constant, dtype=torch.float64)
    assert NORMALISERS["zscore"](reward, all_kept(reward)).abs().max() == 0.0


def test_sign_max_abs_scales_each_sign_by_its_own_largest_size() -> None:
    reward = row(1.0, 4.0, 0.0, -10.0, -5.0)
    expected = row(0.25, 1.0, 0.0, -1.0, -0.5)
    torch.testing.assert_close(NORMALISERS["sign_max_abs"](reward, all_kept(reward)), expected)


def test_sign_max_abs_of_a_window_of_one_sign_leaves_the_other_scale_alone() -> None:
    reward = row(-2.0, -1.0, 0.0)
    assert NORMALISERS["sign_max_abs"](reward, all_kept(reward)).tolist() == [[-1.0, -0.5, 0.0]]


@pytest.mark.parametrize("name", NORMALISERS)
@unhurried
@given(st.lists(st.lists(st.floats(-60, 60), min_size=0, max_size=6), min_size=1, max_size=5))
def test_statistics_merged_over_parts_equal_those_of_the_whole(name: str, parts: list[list[float]]) -> None:
    normaliser = NORMALISERS[name]
    tensors = [torch.tensor([part], dtype=torch.float64) for part in parts]
    whole = torch.cat(tensors, dim=1)
    merged = normaliser.merge(*(normaliser.statistics(part, all_kept(part)) for part in tensors))
    torch.testing.assert_close(merged, normaliser.statistics(whole, all_kept(whole)), rtol=1e-12, atol=1e-12)
    in_parts = [normaliser.apply(part, all_kept(part), merged) for part in tensors]
    at_once = normaliser.apply(whole, all_kept(whole), merged)
    torch.testing.assert_close(torch.cat(in_parts, dim=1), at_once, rtol=0, atol=0)


@pytest.mark.parametrize("name", NORMALISERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normaliser_ignores_masked_slots_and_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, False, True, True, False]])
    reward = torch.tensor([[1.0, NAN, -2.0, 0.5, INF]], dtype=dtype, requires_grad=True)
    value = NORMALISERS[name](reward, mask)
    assert value.dtype == dtype
    assert not value.requires_grad
    assert value[~mask].tolist() == [0.0, 0.0]
    alone = reward[mask].unsqueeze(0)
    torch.testing.assert_close(value[mask], NORMALISERS[name](alone, all_kept(alone))[0])


@pytest.mark.parametrize("name", NORMALISERS)
def test_a_normaliser_of_an_empty_window_gives_zeros(name: str) -> None:
    reward = row(NAN, 1.0)
    assert NORMALISERS[name](reward, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]
    assert NORMALISERS[name](torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool)).shape == (0, 0)


@pytest.mark.parametrize("name", WINDOW_NORMALISERS)
def test_a_normaliser_undoes_the_scale_of_the_reward(name: str) -> None:
    reward = row(0.3, -0.7, 1.1, 0.0)
    normaliser = NORMALISERS[name]
    torch.testing.assert_close(normaliser(100 * reward, all_kept(reward)), normaliser(reward, all_kept(reward)))


def weight(name: str, logp: Tensor, behaviour_logp: Tensor, mask: Tensor) -> Tensor:
    """Return the importance weight, with the current policy as the proximal one."""
    entry = IMPORTANCE_WEIGHTS[name]
    extras = {"proximal_logp_BT": logp} if entry.needs.proximal else {}
    return entry(logp, behaviour_logp, mask, **extras)


@pytest.mark.parametrize("name", IMPORTANCE_WEIGHTS)
@unhurried
@given(st.lists(st.floats(-80, 0) | st.just(-INF), min_size=1, max_size=4))
def test_the_importance_weight_is_one_where_both_policies_agree(name: str, logp: list[float]) -> None:
    assert weight(name, row(*logp), row(*logp), all_kept(row(*logp))).tolist() == [[1.0] * len(logp)]


def test_the_truncated_weight_is_the_clipped_importance_ratio() -> None:
    logp, behaviour_logp = row(-1.0, -0.1, -5.0, -INF), row(-1.5, -3.0, -1.0, -0.5)
    weight = IMPORTANCE_WEIGHTS["truncated"](logp, behaviour_logp, all_kept(logp), low=0.1, high=2.0)
    torch.testing.assert_close(weight, row(math.exp(0.5), 2.0, 0.1, 0.1))


def test_the_log_ratio_of_a_weight_is_clamped_before_exp() -> None:
    logp, behaviour_logp = row(0.0, -900.0), row(-900.0, 0.0)
    weight = IMPORTANCE_WEIGHTS["truncated"](logp, behaviour_logp, all_kept(logp), high=1e30)
    torch.testing.assert_close(weight, row(math.exp(20), math.exp(-20)))


LOSS = torch.tensor([[1.0, 2.0, 3.0], [5.0, NAN, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("how", "value"),
    [("window_token_mean", 11 / 4), ("seq_mean_token_mean", 7 / 2), ("seq_mean_token_sum", 11 / 2)],
)
def test_aggregation_skips_masked_tokens_and_empty_responses(how: str, value: float) -> None:
    assert aggregate(LOSS, MASK, how).item() == pytest.approx(value)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_the_parts_of_a_window_add_up_to_its_loss(how: str, cut: int) -> None:
    parts = [(LOSS[:cut], MASK[:cut]), (LOSS[cut:], MASK[cut:])]
    num_tokens, num_sequences = torch.stack([window_counts(mask) for _, mask in parts]).sum(0).tolist()
    losses = [aggregate(loss, mask, how, num_tokens, num_sequences=num_sequences) for loss, mask in parts]
    torch.testing.assert_close(torch.stack(losses).sum(), aggregate(LOSS, MASK, how))


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_an_empty_mask_gives_a_zero_loss_that_is_attached_to_the_graph(how: str) -> None:
    logp = torch.full((2, 3), NAN, requires_grad=True)
    loss = aggregate(logp, torch.zeros(2, 3, dtype=torch.bool), how)
    loss.backward()
    assert loss.item() == 0.0
    assert logp.grad is not None
    assert logp.grad.abs().sum() == 0.0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_masked_tokens_receive_no_gradient(how: str) -> None:
    loss = LOSS.clone().requires_grad_()
    aggregate(loss, MASK, how).backward()
    assert loss.grad is not None
    assert loss.grad[~MASK].abs().sum() == 0.0
    assert (loss.grad[MASK] > 0).all()


def test_an_unknown_aggregation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"nearest: window_token_mean"):
        aggregate(LOSS, MASK, "window_token_meen")
