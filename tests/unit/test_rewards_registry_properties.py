"""What every entry of every registry promises; entries that are added later are covered by the same loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards import (
    BASELINES,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
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
