"""Tokens sampled on CPU engines: the distribution, the limits, and that a draw depends on seed and place alone."""

import numpy as np
import pytest
import torch

from actors.vllm.sampling import sample, uniform


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (20, 0.95), (0, 0.9), (7, 1.0), (1, 1.0)])
def test_tokens_are_sampled_as_often_as_the_cut_distribution_says(top_k: int, top_p: float) -> None:
    logits_V = 2 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    num = 100_000
    numbers = torch.from_numpy(uniform([3] * num, list(range(num))))
    sampled = torch.bincount(sample(logits_V.expand(num, -1), top_k, top_p, numbers), minlength=50) / num
    p_V, order_V = logits_V.softmax(-1).sort(descending=True)
    if top_k:
        p_V[top_k:] = 0
        p_V /= p_V.sum()
    p_V[(p_V.cumsum(0) - p_V) >= top_p] = 0
    expected = torch.zeros(50).scatter_(0, order_V, p_V / p_V.sum())
    assert not (sampled > 0)[expected == 0].any()
    assert (sampled > 0)[expected > 2e-4].all()
    assert (sampled - expected).abs().max() < 0.006


def test_a_nucleus_wider_than_the_first_look_is_found() -> None:
    logits_RV = torch.zeros(2, 5000)
    logits_RV[0, 7] = 20.0  # all but certain: its nucleus is one token
    numbers = torch.tensor([0.999, 0.999], dtype=torch.float64)
    ids = sample(logits_RV, 0, 0.5, numbers).tolist()
    assert ids[0] == 7
    wide = sample(logits_RV[1:].expand(2000, -1), 0, 0.5, torch.linspace(0, 0.9999, 2000, dtype=torch.float64))
    assert len(set(wide.tolist())) > 1900  # of 2,500 tokens that make up half of the mass


def test_the_largest_number_stays_within_the_tokens_that_are_left() -> None:
    logits_RV = torch.tensor([[0.0, 3.0, 2.0, -50.0]])
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample(logits_RV, 2, 1.0, almost_one).tolist() == [2]
    assert sample(logits_RV, 0, 1.0, torch.zeros(1, dtype=torch.float64)).tolist() == [0]


def test_numbers_are_spread_evenly_and_depend_on_seed_and_place_alone() -> None:
    numbers = uniform([1, 2, 1], [0, 0, 0])
    assert numbers[0] == numbers[2] != numbers[1]
    many = uniform([7] * 100_000, list(range(100_000)))
    assert np.histogram(many, bins=10, range=(0, 1))[0].min() > 9_600
    neighbours = uniform(list(range(100_000)), [5] * 100_000)
    assert abs(np.corrcoef(many, neighbours)[0, 1]) < 0.02
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.02
    assert ((many >= 0) & (many < 1)).all()
