"""What every entry of every registry promises; entries that are added later are covered by the same loops."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards import (
    BASELINES,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    OBJECTIVES,
    SURROGATES,
    TOKEN_MASKS,
    TOKEN_REWARDS,
    TOKEN_WEIGHTS,
    Entry,
    TeacherLogits,
)

NAN, INF = math.nan, math.inf
MASK = torch.tensor([[True, False, True, True], [True, True, False, False], [False, False, False, False]])
VOCABULARY = 5
NUM_POSITIONS = 4
SMALL_SUPPORT = {"k": 3, "beta_start": 0.3}
DISTRIBUTIONS = [("divergence", entry) for entry in DIVERGENCES.values()]
BASELINE_ENTRIES = [("baseline", entry) for entry in BASELINES.values()]


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def log_probs(seed: int) -> Tensor:
    return -numbers(seed, *MASK.shape).abs() - 0.01


def token_extras(entry: Entry) -> dict[str, Any]:
    """Return every extra input that the entry takes, per token."""
    known = {
        "reference_logp_BT": log_probs(3),
        "behaviour_logp_BT": log_probs(4),
        "proximal_logp_BT": log_probs(5),
        "teacher_logp_BT": log_probs(6),
        "student_logp_BT": log_probs(7),
        "advantage_BT": numbers(8, *MASK.shape),
        "student_entropy_BT": numbers(9, *MASK.shape).abs(),
        "teacher_entropy_BT": numbers(10, *MASK.shape).abs(),
        "reverse_kl_BT": numbers(11, *MASK.shape).abs(),
        "response_ids_BT": torch.arange(MASK.numel()).reshape(MASK.shape) % 3,
        "special_token_ids": (1, 2),
        "is_truncated_B": torch.tensor([False, True, False]),
        "entropy_threshold": 0.1,
        "step": 1,
        "max_steps": 4,
    }
    return {name: known[name] for name in entry.extras}


def position_extras(entry: Entry) -> dict[str, Any]:
    """Return every extra input that the entry takes, per position."""
    known = {
        "sampled_ids_N": torch.arange(NUM_POSITIONS) % VOCABULARY,
        "sampled_teacher_logp_N": -numbers(12, NUM_POSITIONS).abs(),
        "teacher_entropy_N": numbers(13, NUM_POSITIONS).abs(),
        "step": 1,
        "max_steps": 4,
    }
    return {name: known[name] for name in entry.extras}


def small(entry: Entry) -> dict[str, Any]:
    return {p.name: SMALL_SUPPORT[p.name] for p in entry.parameters if p.name in SMALL_SUPPORT}


def spoil(values: Any, garbage: float) -> Any:
    """Return the values with garbage in the masked slots, if they are one number per token."""
    is_per_token = isinstance(values, Tensor) and values.shape == MASK.shape and values.is_floating_point()
    return values.masked_fill(~MASK, garbage) if is_per_token else values


def tokenwise_call(kind: str, entry: Entry, garbage: float | None) -> tuple[Tensor, Tensor]:
    """Return the entry's value and the gradient that its sum gives to the current log-prob."""
    first, second = log_probs(1), log_probs(2)
    extras = token_extras(entry)
    if garbage is not None:
        first, second = spoil(first, garbage), spoil(second, garbage)
        extras = {name: spoil(value, garbage) for name, value in extras.items()}
    first.requires_grad_()
    value = entry(MASK, **extras) if kind in ("mask", "weight") else entry(first, second, MASK, **extras)
    gradient = torch.zeros_like(first)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), first)
    return value.detach(), gradient


TOKENWISE = [
    (kind, entry)
    for kind, registry in (
        ("reward", TOKEN_REWARDS),
        ("mask", TOKEN_MASKS),
        ("weight", TOKEN_WEIGHTS),
        ("importance", IMPORTANCE_WEIGHTS),
        ("surrogate", SURROGATES),
    )
    for entry in registry.values()
]


@pytest.mark.parametrize(("kind", "entry"), TOKENWISE, ids=[f"{kind}-{entry.name}" for kind, entry in TOKENWISE])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3.0])
def test_masked_slots_change_neither_value_nor_gradient(kind: str, entry: Entry, garbage: float) -> None:
    clean_value, clean_gradient = tokenwise_call(kind, entry, None)
    value, gradient = tokenwise_call(kind, entry, garbage)
    torch.testing.assert_close(value, clean_value, rtol=0, atol=0)
    torch.testing.assert_close(gradient, clean_gradient, rtol=0, atol=0)
    assert value[~MASK].any().item() is False
    assert gradient[~MASK].abs().sum() == 0.0
    assert value.isfinite().all()


@pytest.mark.parametrize(("kind", "entry"), TOKENWISE, ids=[f"{kind}-{entry.name}" for kind, entry in TOKENWISE])
def test_only_a_surrogate_carries_gradient(kind: str, entry: Entry) -> None:
    _, gradient = tokenwise_call(kind, entry, None)
    assert (gradient.abs().sum() > 0.0) == (kind == "surrogate")


@pytest.mark.parametrize(("kind", "entry"), TOKENWISE, ids=[f"{kind}-{entry.name}" for kind, entry in TOKENWISE])
def test_an_empty_mask_gives_zeros(kind: str, entry: Entry) -> None:
    nothing, inputs = torch.zeros_like(MASK), (log_probs(1), log_probs(2))
    extras = token_extras(entry)
    value = entry(nothing, **extras) if kind in ("mask", "weight") else entry(*inputs, nothing, **extras)
    assert not value.any()


@pytest.mark.parametrize("name", TOKEN_MASKS)
def test_a_mask_is_a_part_of_the_response_mask(name: str) -> None:
    kept = TOKEN_MASKS[name](MASK, **token_extras(TOKEN_MASKS[name]))
    assert kept.dtype == torch.bool
    assert not (kept & ~MASK).any()


def distribution_call(entry: Entry, student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    extras = position_extras(entry)
    if keep is not None:
        extras = {name: value[keep] if isinstance(value, Tensor) else value for name, value in extras.items()}
        student, payload = student[keep], TeacherLogits(teacher).at(keep)
        return entry(student, payload, **small(entry), **extras)
    return entry(student, TeacherLogits(teacher), **small(entry), **extras)


@pytest.mark.parametrize(
    ("kind", "entry"),
    DISTRIBUTIONS + BASELINE_ENTRIES,
    ids=[f"{kind}-{entry.name}" for kind, entry in DISTRIBUTIONS + BASELINE_ENTRIES],
)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_a_position_that_is_not_selected_changes_no_other(kind: str, entry: Entry, garbage: float) -> None:
    keep = torch.tensor([True, False, True, True])
    clean, teacher = numbers(1, NUM_POSITIONS, VOCABULARY), numbers(2, NUM_POSITIONS, VOCABULARY)
    spoiled = clean.clone()
    spoiled[1] = garbage
    clean.requires_grad_()
    spoiled.requires_grad_()
    expected = distribution_call(entry, clean, teacher)[keep]
    for value in (
        distribution_call(entry, spoiled, teacher)[keep],
        distribution_call(entry, spoiled, teacher, keep),
    ):
        torch.testing.assert_close(value, expected)
        assert value.requires_grad == (kind == "divergence")
    if kind == "divergence":
        (gradient,) = torch.autograd.grad(distribution_call(entry, spoiled, teacher, keep).sum(), spoiled)
        (clean_gradient,) = torch.autograd.grad(expected.sum(), clean)
        torch.testing.assert_close(gradient, clean_gradient)


@pytest.mark.parametrize(
    ("kind", "entry"),
    DISTRIBUTIONS + BASELINE_ENTRIES,
    ids=[f"{kind}-{entry.name}" for kind, entry in DISTRIBUTIONS + BASELINE_ENTRIES],
)
def test_half_precision_logits_are_raised_to_float32_and_float64_is_kept(kind: str, entry: Entry) -> None:
    student, teacher = numbers(1, NUM_POSITIONS, VOCABULARY), numbers(2, NUM_POSITIONS, VOCABULARY)
    assert distribution_call(entry, student, teacher).dtype == torch.float64
    half = distribution_call(entry, student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    rounded = distribution_call(entry, student.bfloat16().double(), teacher.bfloat16().double())
    torch.testing.assert_close(half.double(), rounded, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("entry", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_a_divergence_is_differentiated_in_the_student_only(entry: Entry) -> None:
    student = numbers(1, NUM_POSITIONS, VOCABULARY).requires_grad_()
    teacher = numbers(2, NUM_POSITIONS, VOCABULARY).requires_grad_()
    distribution_call(entry, student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


# -- where the student agrees with the teacher ---------------------------------------------------------------


def variants(entry: Entry) -> Iterator[dict[str, Any]]:
    """The defaults, and every parameter in turn at each choice, or at numbers on both sides of 0 and 1."""
    yield {}
    for each in entry.parameters:
        for value in each.choices or (False, True, -0.5, 0.0, 0.3, 0.5, 1.0, 2):
            try:
                entry.validate(small(entry) | {each.name: value}, field="")
            except ValueError:
                continue
            yield {each.name: value}


REWARD_VARIANTS = [(entry, given) for entry in TOKEN_REWARDS.values() for given in variants(entry)]
DIVERGENCE_VARIANTS = [(entry, given) for entry in DIVERGENCES.values() for given in variants(entry)]


def name_of(value: Any) -> str:
    return value.name if isinstance(value, Entry) else " ".join(f"{k}={v}" for k, v in value.items())


def narrowed(log_p_NV: Tensor) -> dict[str, Tensor]:
    """What credits tokens in place of p: top-k, top-p, two temperatures, and a stop token that does not count."""
    ranks = log_p_NV.argsort(-1, descending=True).argsort(-1)
    in_order, order = log_p_NV.exp().sort(-1, descending=True)
    is_in_order = in_order.cumsum(-1) - in_order < 0.9
    in_nucleus = torch.zeros_like(is_in_order).scatter(-1, order, is_in_order)
    return {
        "top_k": log_p_NV.masked_fill(ranks >= 3, -INF).softmax(-1),
        "top_p": log_p_NV.masked_fill(~in_nucleus, -INF).softmax(-1),
        "cold": (log_p_NV / 0.7).softmax(-1),
        "hot": (log_p_NV / 1.3).softmax(-1),
        "masked": log_p_NV.exp() * (torch.arange(VOCABULARY) > 0),
    }


@pytest.mark.parametrize(("entry", "given"), REWARD_VARIANTS, ids=name_of)
def test_where_the_student_agrees_with_the_teacher_nothing_is_learned_however_tokens_are_sampled(
    entry: Entry, given: dict[str, Any]
) -> None:
    """Or the entry says that it needs the full softmax, and is refused with any other sampling."""
    log_p = numbers(1, NUM_POSITIONS, VOCABULARY).log_softmax(-1)
    known = {"reference_logp_BT": numbers(3, *log_p.shape).log_softmax(-1), "step": 1, "max_steps": 4}
    extras = {name: known[name] for name in entry.extras}
    reward = entry(log_p, log_p, torch.ones_like(log_p, dtype=torch.bool), **extras, **given)
    largest = 0.0
    for sampled in narrowed(log_p).values():
        credit = sampled * reward
        gradient = credit - credit.sum(-1, keepdim=True) * log_p.exp()  # of sum of credit * log p, in the logits
        largest = max(largest, gradient.abs().max().item())
    objective = OBJECTIVES[entry.name]
    direction = {"direction": "reverse"} if entry.name == "veto" else {}  # the one that is sampled
    needs = objective.needs_with(objective.validate(given | direction, field=""))
    assert needs.full_softmax == (largest > 1e-12)


OTHER_OPTIMUM = {"top_k_forward_kl", "eopd", "aopd", "veto", "veto_full"}
"""Divergences whose optimum is another distribution than the teacher's, by their definition."""


@pytest.mark.parametrize(("entry", "given"), DIVERGENCE_VARIANTS, ids=name_of)
def test_a_divergence_is_stationary_at_the_teacher_but_for_those_of_another_target(
    entry: Entry, given: dict[str, Any]
) -> None:
    student = numbers(1, NUM_POSITIONS, VOCABULARY).requires_grad_()
    extras = position_extras(entry)
    if "sampled_ids_N" in extras:
        log_p = student.detach().log_softmax(-1)
        extras["sampled_teacher_logp_N"] = log_p.gather(-1, extras["sampled_ids_N"][:, None])[:, 0]
    value = entry(student, TeacherLogits(student.detach()), **small(entry) | extras | given)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    has_other = entry.name in OTHER_OPTIMUM or given.get("normalise") is False
    assert gradient.abs().max() < 1e-12 or has_other
