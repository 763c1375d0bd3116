"""Divergences and baselines: special settings, supports, and the rewards that descend them in expectation."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewards import BASELINES, DIVERGENCES, TOKEN_REWARDS, Entry, TeacherLogits, TeacherTopK, scheduled_beta
from rewards.teacher import kl_terms
from tests.examples import examples

V = 7
few = examples(25)
seeds = st.integers(0, 10_000)


def pair(seed: int, scale: float = 2.0) -> tuple[Tensor, TeacherLogits]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 3, V, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), TeacherLogits(teacher)


def gradient(value_N: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(value_N.sum(), student, retain_graph=True)[0]


def expected_gradient(reward_NV: Tensor, student: Tensor) -> Tensor:
    """Return the mean over the student's own tokens of the gradient of -reward * log p."""
    log_p_NV = student.log_softmax(-1)
    return gradient(-log_p_NV.detach().exp() * reward_NV * log_p_NV, student)


def reward_of_all(name: str, student: Tensor, teacher: TeacherLogits, **keywords: object) -> Tensor:
    log_p_NV, log_t_NV = student.log_softmax(-1), teacher.logits_NV.log_softmax(-1)
    mask_NV = torch.ones_like(log_p_NV, dtype=torch.bool)
    return TOKEN_REWARDS[name](log_t_NV, log_p_NV, mask_NV, **keywords)


def assert_same(actual: Tensor, expected: Tensor, student: Tensor) -> None:
    """Check values and gradients in the student's logits."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(actual, student), gradient(expected, student), rtol=1e-8, atol=1e-11)


# -- rewards of sampled tokens descend divergences --------------------------------------------------------


@few
@given(seeds, st.floats(min_value=1e-3, max_value=50.0))
def test_power_descends_power_full_in_expectation(seed: int, alpha: float) -> None:
    student, teacher = pair(seed)
    value = DIVERGENCES["power_full"](student, teacher, alpha=alpha)
    reward = reward_of_all("power", student, teacher, alpha=alpha)
    assert (value >= -1e-12).all()
    torch.testing.assert_close(expected_gradient(reward, student), gradient(value, student), rtol=1e-8, atol=1e-13)


@few
@given(seeds, st.floats(min_value=1e-3, max_value=20.0))
def test_power_full_is_its_formula_and_autograd_of_the_formula_is_its_gradient(seed: int, alpha: float) -> None:
    student, teacher = pair(seed)
    p, t = student.softmax(-1), teacher.logits_NV.softmax(-1)
    formula = (p ** (1 + alpha) - (1 + alpha) * p * t**alpha + alpha * t ** (1 + alpha)).sum(-1) / (1 + alpha)
    assert_same(DIVERGENCES["power_full"](student, teacher, alpha=alpha), formula, student)


@few
@given(seeds)
def test_the_log_ratio_descends_the_reverse_kl_in_expectation(seed: int) -> None:
    student, teacher = pair(seed)
    value = DIVERGENCES["reverse_kl"](student, teacher)
    torch.testing.assert_close(
        expected_gradient(reward_of_all("log_ratio", student, teacher), student), gradient(value, student)
    )


@few
@given(seeds, st.floats(min_value=0.0, max_value=1.5))
def test_veto_reverse_descends_the_reverse_veto_divergence_in_expectation(seed: int, beta: float) -> None:
    student, teacher = pair(seed)
    value = DIVERGENCES["veto_full"](student, teacher, beta=beta, direction="reverse")
    reward = reward_of_all("veto_reverse", student, teacher, beta=beta)
    torch.testing.assert_close(expected_gradient(reward, student), gradient(value, student))


@few
@given(seeds, st.sampled_from(["fkl", "rkl", "jsd"]))
def test_exact_opd_plus_descends_its_f_divergence_in_expectation(seed: int, name: str) -> None:
    student, teacher = pair(seed, scale=1.0)
    u = (teacher.logits_NV.log_softmax(-1) - student.log_softmax(-1)).exp()
    f = {
        "fkl": u * u.log(),
        "rkl": -u.log(),
        "jsd": 0.5 * (u * u.log() - (1 + u) * ((1 + u) / 2).log()),
    }[name]
    value = (student.softmax(-1) * f).sum(-1)
    reward = reward_of_all("opd_plus", student, teacher, divergence=name)
    torch.testing.assert_close(expected_gradient(reward, student), gradient(value, student))


@few
@given(seeds)
def test_the_policy_gradient_over_all_student_tokens_is_the_reverse_kl_gradient(seed: int) -> None:
    student, teacher = pair(seed)
    value = DIVERGENCES["student_top_k"](student, teacher, k=V)
    exact = DIVERGENCES["reverse_kl"](student, teacher)
    torch.testing.assert_close(gradient(value, student), gradient(exact, student))


# -- agreement --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", DIVERGENCES.values(), ids=DIVERGENCES.keys())
@examples(10)
@given(seeds)
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(entry: Entry, seed: int) -> None:
    student, _ = pair(seed)
    special = {"k": V, "beta": 0.0} if entry.name.startswith("veto") else {"k": V}
    params = {p.name: special[p.name] for p in entry.parameters if p.name in special}
    sampled = {
        "sampled_ids_N": torch.zeros(3, dtype=torch.long),
        "sampled_teacher_logp_N": student.detach().log_softmax(-1)[:, 0],
    }
    extras = {name: value for name, value in sampled.items() if name in entry.extras}
    value = entry(student, TeacherLogits(student.detach().clone()), **params, **extras)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    grad = gradient(value, student)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TOKEN_REWARDS)
@examples(10)
@given(seeds)
def test_a_student_that_equals_its_teacher_has_no_expected_policy_gradient(name: str, seed: int) -> None:
    student, _ = pair(seed)
    teacher = TeacherLogits(student.detach().clone())
    keywords: dict[str, object] = {"beta": 0.0} if name.startswith("veto") else {}
    if TOKEN_REWARDS[name].needs.reference:
        keywords = {"reference_logp_BT": student.log_softmax(-1)}
    grad = expected_gradient(reward_of_all(name, student, teacher, **keywords), student)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


# -- special settings -------------------------------------------------------------------------------------


@few
@given(seeds)
def test_a_support_of_the_whole_vocabulary_gives_the_full_kl(seed: int) -> None:
    student, teacher = pair(seed)
    for direction in ("reverse", "forward"):
        full = DIVERGENCES[f"{direction}_kl"](student, teacher)
        for support in ("teacher", "student", "union"):
            for params in ({"normalise": True}, {"normalise": False}, {"tail": "bucket"}):
                value = DIVERGENCES["lsm"](student, teacher, k=V, direction=direction, support=support, **params)
                assert_same(value, full, student)
    assert_same(DIVERGENCES["top_k_forward_kl"](student, teacher, k=V), full, student)


@few
@given(seeds)
def test_veto_with_beta_zero_is_the_plain_kl(seed: int) -> None:
    student, teacher = pair(seed)
    for direction in ("reverse", "forward"):
        value = DIVERGENCES["veto"](student, teacher, beta=0.0, direction=direction)
        assert_same(value, DIVERGENCES[f"{direction}_kl"](student, teacher), student)
    torch.testing.assert_close(
        reward_of_all("veto_reverse", student, teacher, beta=0.0), reward_of_all("log_ratio", student, teacher)
    )


@few
@given(seeds)
def test_g_opd_with_lambda_one_is_the_log_ratio_whatever_the_reference(seed: int) -> None:
    student, teacher = pair(seed)
    reference = pair(seed + 1)[0].log_softmax(-1)
    torch.testing.assert_close(
        reward_of_all("g_opd", student, teacher, lambda_=1.0, reference_logp_BT=reference),
        reward_of_all("log_ratio", student, teacher),
    )


@few
@given(seeds, st.floats(min_value=0.05, max_value=0.9))
def test_reverse_veto_is_g_opd_with_a_uniform_reference(seed: int, beta: float) -> None:
    student, teacher = pair(seed)
    lambda_ = 1.0 / (1.0 - beta)
    uniform = torch.full_like(student, -math.log(V))
    g_opd = reward_of_all("g_opd", student, teacher, lambda_=lambda_, reference_logp_BT=uniform)
    veto = reward_of_all("veto_reverse", student, teacher, beta=beta)
    difference = veto - (1.0 - beta) * g_opd
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))


@few
@given(seeds)
def test_jsd_and_linear_kl_are_the_plain_kls_at_their_ends(seed: int) -> None:
    student, teacher = pair(seed)
    for name in ("jsd", "linear_kl"):
        for beta, direction in ((0.0, "forward"), (1.0, "reverse")):
            value = DIVERGENCES[name](student, teacher, beta=beta)
            assert_same(value, DIVERGENCES[f"{direction}_kl"](student, teacher), student)


@few
@given(seeds)
def test_the_gates_of_aopd_and_eopd_choose_between_nothing_and_everything(seed: int) -> None:
    student, teacher = pair(seed)
    extras = {
        "sampled_ids_N": torch.tensor([0, 3, 6]),
        "sampled_teacher_logp_N": teacher.logits_NV.log_softmax(-1)[range(3), [0, 3, 6]],
    }
    everywhere = DIVERGENCES["top_k_forward_kl"](student, teacher, k=4)
    assert_same(DIVERGENCES["aopd"](student, teacher, tau=1.0, k=4, **extras), everywhere, student)
    assert not DIVERGENCES["aopd"](student, teacher, tau=-1.0, k=4, **extras).any()
    assert_same(DIVERGENCES["eopd"](student, teacher, tau=0.0, alpha=2.0, k=4), 2 * everywhere, student)
    assert not DIVERGENCES["eopd"](student, teacher, tau=10.0, k=4).any()
    log_ratio = reward_of_all("log_ratio", student, teacher)
    torch.testing.assert_close(reward_of_all("aopd", student, teacher, tau=-1.0), log_ratio)
    assert not reward_of_all("aopd", student, teacher, tau=1.0).any()


# -- supports ---------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_local_support_matching_leaves_tokens_outside_the_support_alone(seed: int) -> None:
    student, teacher = pair(seed)
    grad = gradient(DIVERGENCES["lsm"](student, teacher, k=3), student)
    outside = torch.ones_like(grad, dtype=torch.bool).scatter(-1, teacher.logits_NV.topk(3).indices, False)
    assert grad[outside].abs().max() < 1e-15
    torch.testing.assert_close(grad.sum(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def lsm_over(student: Tensor, teacher: TeacherLogits, is_member_NV: Tensor) -> Tensor:
    log_p = student.masked_fill(~is_member_NV, -math.inf).log_softmax(-1)
    log_t = teacher.logits_NV.masked_fill(~is_member_NV, -math.inf).log_softmax(-1)
    return kl_terms(log_p, log_t).sum(-1)


@few
@given(seeds)
def test_joined_supports_count_a_shared_token_once(seed: int) -> None:
    student, teacher = pair(seed)
    sampled = torch.tensor([0, 3, 6])
    log_t = teacher.logits_NV.log_softmax(-1)
    nothing = torch.zeros_like(log_t, dtype=torch.bool)
    of_teacher = nothing.scatter(-1, log_t.topk(3).indices, True)
    of_student = nothing.scatter(-1, student.topk(3).indices, True)
    of_sample = nothing.scatter(-1, sampled.unsqueeze(-1), True)
    lsm = DIVERGENCES["lsm"]
    union = lsm(student, teacher, k=3, support="union")
    assert_same(union, lsm_over(student, teacher, of_teacher | of_student), student)
    with_sample = lsm(student, teacher, k=3, support="teacher+sampled", sampled_ids_N=sampled)
    assert_same(with_sample, lsm_over(student, teacher, of_teacher | of_sample), student)
    top_k = TeacherTopK(*reversed(log_t.topk(4)))
    extras = {"sampled_ids_N": sampled, "sampled_teacher_logp_N": log_t[range(3), sampled]}
    assert_same(lsm(student, top_k, k=3, support="teacher+sampled", **extras), with_sample, student)


def test_a_payload_that_cannot_serve_the_support_is_refused() -> None:
    student, teacher = pair(0)
    top_k = TeacherTopK(*reversed(teacher.logits_NV.log_softmax(-1).topk(3)))
    lsm = DIVERGENCES["lsm"]
    refused: list[tuple[Callable[[], Tensor], str]] = [
        (lambda: lsm(student, teacher, k=V + 1), r"k must be >= 1 and <= the vocabulary \(7\), got 8"),
        (lambda: lsm(student, top_k, k=4), r"k must be <= the 3 tokens that the teacher returned, got 4"),
        (lambda: lsm(student, top_k, k=3, support="union"), r"support union needs all of a teacher's logits"),
        (lambda: lsm(student, top_k, k=3, support="teacher+sampled"), r"needs sampled_ids_N"),
        (lambda: DIVERGENCES["jsd"](student, top_k), r"needs all of a teacher's logits, got TeacherTopK"),
        (lambda: DIVERGENCES["jsd"](student[:, :5], teacher), r"cut to one vocabulary, got shapes"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_token_that_one_side_rules_out_is_handled_by_the_direction() -> None:
    student = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    teacher = TeacherLogits(torch.tensor([[1.0, 0.0, -math.inf]], dtype=torch.float64))
    forward = DIVERGENCES["forward_kl"](student, teacher)
    torch.testing.assert_close(forward, -student.softmax(-1)[:, :2].sum(-1).log())
    assert gradient(forward, student).isfinite().all()
    assert DIVERGENCES["reverse_kl"](student, teacher).item() == math.inf
    both = DIVERGENCES["reverse_kl"](student + teacher.logits_NV.clamp(max=0.0), teacher)
    assert gradient(both, student).isfinite().all()
    power = DIVERGENCES["power_full"](student, teacher, alpha=2.0)
    assert power.isfinite().all()
    assert gradient(power, student).isfinite().all()


# -- baselines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
@examples(15)
@given(seeds)
def test_a_reward_minus_its_baseline_has_mean_zero_and_the_same_expected_gradient(name: str, seed: int) -> None:
    student, teacher = pair(seed)
    baseline = BASELINES[name](student, teacher)
    reward = reward_of_all(name, student, teacher)
    advantage = reward - baseline.unsqueeze(-1)
    mean = (student.softmax(-1) * advantage).sum(-1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(expected_gradient(advantage, student), expected_gradient(reward, student))
    assert not baseline.requires_grad


def test_the_log_ratio_baseline_over_all_of_the_students_tokens_is_the_exact_one() -> None:
    student, teacher = pair(3)
    exact = BASELINES["log_ratio"](student, teacher)
    torch.testing.assert_close(BASELINES["log_ratio"](student, teacher, k=V), exact)
    ids = student.topk(3).indices
    asked = TeacherTopK(ids, teacher.logits_NV.log_softmax(-1).gather(-1, ids))
    few_tokens = BASELINES["log_ratio"](student, teacher, k=3)
    torch.testing.assert_close(BASELINES["log_ratio"](student, asked, k=3), few_tokens)


# -- schedule ---------------------------------------------------------------------------------------------


def test_beta_falls_linearly_with_the_step_and_stands_at_its_start_without_one() -> None:
    assert scheduled_beta(1.2, 0.0, "linear") == 1.2
    assert scheduled_beta(1.2, 0.0, "linear", step=30, max_steps=10) == 0.0
    assert scheduled_beta(0.5, 0.0, "constant", step=9, max_steps=10) == 0.5
    with pytest.raises(ValueError, match="max_steps must be given"):
        scheduled_beta(0.5, 0.0, "linear", step=1)


def test_veto_follows_the_schedule_in_both_registries() -> None:
    student, teacher = pair(5)
    at = {"step": 5, "max_steps": 10}
    torch.testing.assert_close(
        DIVERGENCES["veto"](student, teacher, **at), DIVERGENCES["veto"](student, teacher, beta=0.4)
    )
    torch.testing.assert_close(
        reward_of_all("veto", student, teacher, beta_start=1.2, beta_end=0.2, **at),
        reward_of_all("veto_reverse", student, teacher, beta=0.7),
    )
