"""What PowerOPD descends: a Bregman divergence whose one minimum is the teacher; and the three limits of that.

`docs/objectives.md` says it in words. Shapes: V vocabulary.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewards import DIVERGENCES, TOKEN_REWARDS, TeacherLogits
from tests.examples import examples

V = 6
ALPHAS = (0.1, 0.5, 1.0, 5.0)
seeds = st.integers(0, 2**20)
START, TEACHER = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.55, 0.3, 0.1, 0.05]], dtype=torch.float64).unbind()


def distributions(seed: int, number: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, V, dtype=torch.float64, generator=generator).softmax(-1).unbind()


def generator_of(p_V: Tensor, alpha: float) -> Tensor:
    """The convex function whose Bregman divergence it is."""
    return (p_V ** (1 + alpha)).sum() / (1 + alpha)


def bregman(p_V: Tensor, t_V: Tensor, alpha: float) -> Tensor:
    leaf_V = t_V.clone().requires_grad_()
    (slope_V,) = torch.autograd.grad(generator_of(leaf_V, alpha), leaf_V)
    return generator_of(p_V, alpha) - generator_of(t_V, alpha) - slope_V @ (p_V - t_V)


def reward(p_V: Tensor, t_V: Tensor, alpha: float) -> Tensor:
    mask_1V = torch.ones(1, len(p_V), dtype=torch.bool)
    return TOKEN_REWARDS["power"](t_V.log()[None], p_V.log()[None], mask_1V, alpha=alpha)[0]


def expected_gradient(p_V: Tensor, t_V: Tensor, alpha: float, sampled_V: Tensor | None = None) -> Tensor:
    """In the logits, over tokens sampled from the student, or from `sampled_V`."""
    credit_V = (p_V if sampled_V is None else sampled_V) * reward(p_V, t_V, alpha)
    return -(credit_V - credit_V.sum() * p_V)


@given(seed=seeds, alpha=st.sampled_from(ALPHAS))
@examples(40)
def test_the_expected_gradient_is_that_of_the_bregman_divergence(seed: int, alpha: float) -> None:
    p_V, t_V = distributions(seed, 2)
    logits_V = p_V.log().requires_grad_()
    value = bregman(logits_V.softmax(-1), t_V, alpha)
    (gradient_V,) = torch.autograd.grad(value, logits_V)
    torch.testing.assert_close(expected_gradient(p_V, t_V, alpha), gradient_V, rtol=1e-9, atol=1e-12)
    full = DIVERGENCES["power_full"](p_V.log()[None], TeacherLogits(t_V.log()[None]), alpha=alpha)[0]
    torch.testing.assert_close(full, value.detach(), rtol=1e-9, atol=1e-12)


@given(seed=seeds, alpha=st.sampled_from(ALPHAS), share=st.floats(0.1, 0.9))
@examples(40)
def test_it_is_strictly_convex_and_positive_but_at_the_teacher(seed: int, alpha: float, share: float) -> None:
    p_V, q_V, t_V = distributions(seed, 3)
    between = bregman(share * p_V + (1 - share) * q_V, t_V, alpha)
    assert between < share * bregman(p_V, t_V, alpha) + (1 - share) * bregman(q_V, t_V, alpha)
    assert bregman(p_V, t_V, alpha) > 0
    assert bregman(t_V, t_V, alpha).abs() < 1e-15


@given(seed=seeds, alpha=st.sampled_from(ALPHAS))
@examples(40)
def test_in_logits_only_the_teacher_is_stationary(seed: int, alpha: float) -> None:
    """A zero gradient asks for one reward of all tokens, and sums of 1 leave 0 alone for it."""
    p_V, t_V = distributions(seed, 2)
    assert expected_gradient(p_V, t_V, alpha).norm() > 1e-9
    assert reward(p_V, t_V, alpha).min() < 0 < reward(p_V, t_V, alpha).max()
    assert expected_gradient(t_V, t_V, alpha).norm() == 0


def test_a_large_alpha_is_blind_where_both_sides_find_every_token_unlikely() -> None:
    """What 4,000 steps of Adam leave of the distance (total variation), by alpha; a run warns of the last."""
    alphas, left = (0.1, 1.0, 5.0, 50.0), (0.0, 0.0, 0.039, 0.55)
    powers_A1 = torch.tensor(alphas, dtype=torch.float64)[:, None]
    logits_AV, eps = START.log().repeat(len(alphas), 1).requires_grad_(), 1e-8
    adam = torch.optim.Adam([logits_AV], lr=0.01, eps=eps)
    for step in range(4000):
        p_AV = logits_AV.detach().softmax(-1)
        credit_AV = p_AV * (TEACHER**powers_A1 - p_AV**powers_A1)
        logits_AV.grad = credit_AV.sum(-1, keepdim=True) * p_AV - credit_AV
        if step == 0:
            for alpha, gradient_V in zip(alphas, logits_AV.grad, strict=True):
                torch.testing.assert_close(gradient_V, expected_gradient(START, TEACHER, alpha))
                assert (gradient_V.norm() < eps * len(START) ** 0.5) == (alpha == 50.0)
        adam.step()
    distance_A = (logits_AV.detach().softmax(-1) - TEACHER).abs().sum(-1) / 2
    assert distance_A.tolist() == pytest.approx(left, abs=5e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_under_top_k_the_tail_is_undetermined(alpha: float) -> None:
    student_V = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    teacher_V = torch.tensor([0.5, 0.3, 0.02, 0.18], dtype=torch.float64)
    top_2_V = torch.tensor([0.625, 0.375, 0.0, 0.0], dtype=torch.float64)
    assert expected_gradient(student_V, teacher_V, alpha, top_2_V).norm() < 1e-15
    assert expected_gradient(student_V, teacher_V, alpha).norm() > 1e-6


def test_the_best_student_of_a_teacher_out_of_reach_depends_on_alpha() -> None:
    """A student of one parameter, theta * (0, 1, 2) in the logits, and a teacher that is none of its kind."""
    teacher_V = torch.tensor([0.45, 0.1, 0.45], dtype=torch.float64) * 0.9 + torch.tensor([0.1, 0, 0]).double()
    thetas = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    students = (thetas[:, None] * torch.arange(3, dtype=torch.float64)).softmax(-1)
    best = {
        alpha: thetas[torch.stack([bregman(p_V, teacher_V, alpha) for p_V in students]).argmin()].item()
        for alpha in (0.1, 5.0)
    }
    assert abs(best[0.1] - best[5.0]) > 0.1
