"""The token rewards: closed-form values, bounds and limits.

Masks and gradients are in `test_rewards_registry_properties.py`, what each reward descends in expectation in
`test_rewards_divergences.py`.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards import TOKEN_REWARDS, drop_non_finite

NAN, INF = math.nan, math.inf
BOUNDED = [name for name, entry in TOKEN_REWARDS.items() if entry.is_bounded]
log_prob = st.floats(min_value=-80.0, max_value=0.0)
log_prob_or_zero_probability = log_prob | st.just(-INF)
unhurried = settings(deadline=None)
exponent = st.floats(min_value=1e-3, max_value=1000.0)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def reward(name: str, teacher: Tensor, student: Tensor, mask: Tensor | None = None, **params: object) -> Tensor:
    """Return the reward, with the student as the reference model where the objective has one."""
    if mask is None:
        mask = torch.ones_like(teacher, dtype=torch.bool)
    extras = {"reference_logp_BT": student} if TOKEN_REWARDS[name].needs.reference else {}
    return TOKEN_REWARDS[name](teacher, student, mask, **extras, **params)


def test_power_is_the_difference_of_powers_of_the_probabilities() -> None:
    teacher, student = row(math.log(0.5), math.log(0.25)), row(math.log(0.25), math.log(0.5))
    torch.testing.assert_close(reward("power", teacher, student, alpha=2.0), row(0.1875, -0.1875))
    torch.testing.assert_close(
        reward("power", teacher, student, alpha=2.0, rescale="inv_alpha"), row(0.09375, -0.09375)
    )


def test_log_ratio_clip_and_tanh_have_their_closed_forms() -> None:
    teacher, student = row(-0.5, -3.0, -1.0), row(-2.0, -0.5, -1.5)
    torch.testing.assert_close(reward("log_ratio", teacher, student), row(1.5, -2.5, 0.5))
    torch.testing.assert_close(reward("log_clip", teacher, student), row(1.0, -1.0, 0.5))
    torch.testing.assert_close(
        reward("log_tanh", teacher, student), row(math.tanh(0.3), math.tanh(-0.5), math.tanh(0.1))
    )


@pytest.mark.parametrize("name", BOUNDED)
@unhurried
@given(log_prob_or_zero_probability, log_prob_or_zero_probability, st.booleans())
def test_a_bounded_reward_is_finite_and_at_most_one_in_size(
    name: str, teacher: float, student: float, is_double: bool
) -> None:
    dtype = torch.float64 if is_double else torch.float32
    value = reward(name, row(teacher).to(dtype), row(student).to(dtype))
    assert value.dtype == dtype
    assert value.abs().item() <= 1.0


@unhurried
@given(log_prob_or_zero_probability, log_prob_or_zero_probability, exponent)
def test_power_is_bounded_by_the_larger_power_and_has_the_sign_of_the_log_ratio(
    teacher: float, student: float, alpha: float
) -> None:
    value = reward("power", row(teacher), row(student), alpha=alpha).item()
    assert abs(value) <= math.exp(alpha * max(teacher, student)) * (1 + 1e-12)
    assert value * ((teacher > student) - (teacher < student)) >= 0.0


@unhurried
@given(log_prob, log_prob, exponent)
def test_power_keeps_its_digits_in_float32(teacher: float, student: float, alpha: float) -> None:
    single = torch.tensor([[teacher], [student]], dtype=torch.float32)
    exact = reward("power", single[:1].double(), single[1:].double(), alpha=alpha)
    torch.testing.assert_close(
        reward("power", single[:1], single[1:], alpha=alpha).double(), exact, rtol=2e-5, atol=1e-37
    )


@pytest.mark.parametrize("name", [name for name in TOKEN_REWARDS if name != "opd_plus"])
@unhurried
@given(log_prob_or_zero_probability)
def test_a_teacher_that_agrees_with_the_student_gives_reward_zero(name: str, logp: float) -> None:
    params: dict[str, Any] = {"beta": 0.0} if name.startswith("veto") else {}
    assert reward(name, row(logp), row(logp), **params).item() == 0.0


@pytest.mark.parametrize("divergence", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize("naive", [False, True])
@unhurried
@given(log_prob)
def test_opd_plus_gives_a_constant_where_teacher_and_student_agree(
    divergence: str, naive: bool, logp: float
) -> None:
    constant = {"fkl": 1.0, "rkl": -1.0, "jsd": 0.0}[divergence] * (not naive)
    value = reward("opd_plus", row(logp), row(logp), divergence=divergence, naive=naive)
    assert value.item() == pytest.approx(constant, abs=1e-15)


@unhurried
@given(st.floats(min_value=-20, max_value=0), st.floats(min_value=-20, max_value=0))
def test_rescaled_power_tends_to_the_log_ratio_as_alpha_tends_to_zero(teacher: float, student: float) -> None:
    alpha = 1e-7
    value = reward("power", row(teacher), row(student), alpha=alpha, rescale="inv_alpha").item()
    assert value == pytest.approx(teacher - student, rel=1e-9, abs=alpha * 400.0)


def test_power_of_a_token_that_one_side_rules_out_is_the_other_sides_power() -> None:
    teacher, student = row(-INF, -0.5, -INF), row(-0.5, -INF, -INF)
    p = math.exp(-0.5) ** 3
    torch.testing.assert_close(reward("power", teacher, student, alpha=3.0), row(-p, p, 0.0))


@pytest.mark.parametrize("name", TOKEN_REWARDS)
def test_a_log_prob_slightly_above_zero_counts_as_zero(name: str) -> None:
    above, at_zero = row(1e-3, -0.5), row(0.0, -0.5)
    student = row(-0.5, 2e-3)
    torch.testing.assert_close(
        reward(name, above, student), reward(name, at_zero, student.clamp(max=0)), rtol=0, atol=0
    )


def test_a_clip_interval_without_zero_still_gives_zero_outside_the_mask() -> None:
    mask = torch.tensor([[True, False]])
    value = TOKEN_REWARDS["log_clip"](row(-1.0, -1.0), row(-1.0, -1.0), mask, low=0.5, high=1.0)
    assert value.tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("name", TOKEN_REWARDS)
def test_half_precision_log_probs_give_a_float32_reward(name: str) -> None:
    assert reward(name, row(-0.5).bfloat16(), row(-1.0).bfloat16()).dtype == torch.float32


def test_log_ratio_without_a_floor_is_zero_where_it_would_be_infinite_and_nan_stays() -> None:
    teacher, student = row(-INF, -0.5, -INF, -INF, NAN, -0.5), row(-0.5, -1.0, -INF, NAN, -INF, -INF)
    assert reward("log_ratio", teacher, student)[0, [0, 1, 2, 5]].tolist() == [0.0, 0.5, 0.0, 0.0]
    assert reward("log_ratio", teacher, student)[0, 3:5].isnan().all()
    assert reward("log_ratio", teacher, student, logprob_floor=-100.0)[0, :2].tolist() == [-99.5, 0.5]


@pytest.mark.parametrize("name", TOKEN_REWARDS)
def test_a_reward_is_finite_or_nan_at_every_log_prob(name: str) -> None:
    values = [-INF, -700.0, -0.5, 0.0]
    teacher = row(*[value for value in values for _ in values])
    student = row(*[value for _ in values for value in values])
    assert reward(name, teacher, student).isfinite().all()
    assert reward(name, row(NAN, -0.5), row(-0.5, NAN)).isnan().all()


@pytest.mark.parametrize("divergence", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize("naive", [False, True])
def test_opd_plus_is_finite_at_a_log_prob_of_minus_infinity(divergence: str, naive: bool) -> None:
    teacher, student = row(-INF, -0.5, -INF), row(-0.5, -INF, -INF)
    assert reward("opd_plus", teacher, student, divergence=divergence, naive=naive).isfinite().all()
    assert reward("opd_plus", row(NAN), row(-INF), divergence=divergence, naive=naive).isnan().all()
    bounded = reward("opd_plus", teacher, student, divergence=divergence, naive=naive, log_ratio_bound=6.0)
    at_bound = reward("opd_plus", row(-6.0, 0.0), row(0.0, -6.0), divergence=divergence, naive=naive)
    torch.testing.assert_close(bounded[:, :2], at_bound)


def test_the_jsd_reward_of_a_token_far_below_the_teacher_stays_finite_in_float32() -> None:
    value = reward("opd_plus", row(0.0).float(), row(-400.0).float())
    assert value.item() == pytest.approx(0.5 * (400.0 - math.log(2.0)))


@pytest.mark.parametrize("name", TOKEN_REWARDS)
def test_without_a_need_of_a_finite_teacher_the_reward_tends_to_its_value_at_zero_probability(name: str) -> None:
    entry = TOKEN_REWARDS[name]
    if entry.needs_finite_teacher({}):
        assert reward(name, row(-INF), row(-0.5)).item() == 0.0
    else:
        torch.testing.assert_close(reward(name, row(-INF), row(-0.5)), reward(name, row(-700.0), row(-0.5)))


def test_tokens_without_a_finite_reward_or_log_prob_are_dropped_and_counted() -> None:
    teacher, student = row(-INF, -0.5, -0.5, NAN, -INF), row(-0.5, -1.0, -INF, -0.5, -0.5)
    mask = torch.tensor([[True, True, True, True, False]])
    for name, keep in (
        ("log_ratio", [False, True, False, False, False]),
        ("power", [True, True, False, False, False]),
    ):
        entry = TOKEN_REWARDS[name]
        others = (teacher,) if entry.needs_finite_teacher({}) else ()
        kept = drop_non_finite(entry(teacher, student, mask), student, mask, *others)
        assert kept.keep_BT.tolist() == [keep]
        assert kept.num_dropped.item() == 4 - sum(keep)
        assert kept.reward_BT[~kept.keep_BT].abs().sum() == 0.0
        assert kept.reward_BT.isfinite().all()


def test_dropped_tokens_leave_the_gradient_of_the_others_unchanged() -> None:
    student = row(-INF, -1.0, -0.7).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    teacher = row(-0.5, -0.5, -INF)
    kept = drop_non_finite(TOKEN_REWARDS["log_ratio"](teacher, student, mask), student, mask, teacher)
    (-kept.reward_BT * torch.where(kept.keep_BT, student, 0.0)).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, row(0.0, -0.5, 0.0))
