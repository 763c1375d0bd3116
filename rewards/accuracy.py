"""Accuracy over repeated answers: avg@k, pass@k, unbiased pass@k and maj@k. No torch.

Shapes: P problems, K answers per problem in the order of sampling. All results are in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

CorrectPK = Sequence[Sequence[bool | int]]
ClassPK = Sequence[Sequence[Hashable]]
T = TypeVar("T")


def avg_at_k(correct_PK: CorrectPK, k: int) -> float:
    """Return the share of correct answers among the first k, averaged over problems: in [0, 1].

    >>> avg_at_k([[True, False], [True, True]], k=2)
    0.75
    """
    return _mean([sum(map(bool, correct_K)) / k for correct_K in _first(correct_PK, k)])


def pass_at_k(correct_PK: CorrectPK, k: int) -> float:
    """Return the share of problems with a correct answer among the first k: in [0, 1], no unbiased estimator.

    >>> pass_at_k([[False, True], [False, False]], k=2)
    0.5
    """
    return _mean([float(any(correct_K)) for correct_K in _first(correct_PK, k)])


def pass_at_k_unbiased(correct_PK: CorrectPK, k: int) -> float:
    """Return the expected pass@k of k answers drawn from all n of a problem: 1 - C(n - c, k) / C(n, k), c correct.

    Unbiased, and of less variance than the plain one if n > k; equal to it if n = k. Chen et al. 2021, "Evaluating
    Large Language Models Trained on Code", arXiv 2107.03374, equation 1.

    >>> pass_at_k_unbiased([[True, False, False, False]], k=2)
    0.5
    """
    _first(correct_PK, k)
    shares = []
    for correct_K in correct_PK:
        n, num_correct = len(correct_K), sum(map(bool, correct_K))
        shares.append(1 - math.comb(n - num_correct, k) / math.comb(n, k))
    return _mean(shares)


def maj_at_k(class_PK: ClassPK, correct_PK: CorrectPK, k: int) -> float:
    """Return the share of problems whose most frequent answer among the first k is correct.

    `class_PK` says which answers are equal (`rewards.equality_classes`); of two classes of one size, that whose
    first answer was sampled earlier wins, and the first answer of the winner decides. Wang et al. 2022,
    "Self-Consistency Improves Chain of Thought Reasoning in Language Models", arXiv 2203.11171.

    >>> maj_at_k([["5", "7", "7"]], [[True, False, False]], k=3)
    0.0
    """
    if [len(class_K) for class_K in class_PK] != [len(correct_K) for correct_K in correct_PK]:
        raise ValueError("class_PK and correct_PK must have the same problems and answers")
    winners = []
    for class_K, correct_K in zip(_first(class_PK, k), _first(correct_PK, k), strict=True):
        [(winner, _)] = Counter(class_K).most_common(1)  # of equal counts the one met first
        winners.append(float(bool(correct_K[list(class_K).index(winner)])))
    return _mean(winners)


def _first(values_PK: Sequence[Sequence[T]], k: int) -> list[Sequence[T]]:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    fewest = min((len(values_K) for values_K in values_PK), default=0)
    if fewest < k:
        raise ValueError(f"every problem must have at least k = {k} answers, got {fewest}")
    return [values_K[:k] for values_K in values_PK]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
