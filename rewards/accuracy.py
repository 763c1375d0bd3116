"""Accuracy over repeated answers: avg@k and pass@k. No torch.

Shapes: P problems, K answers per problem in the order of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

CorrectPK = Sequence[Sequence[bool | int]]


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


def _first(correct_PK: CorrectPK, k: int) -> list[Sequence[bool | int]]:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    fewest = min((len(correct_K) for correct_K in correct_PK), default=0)
    if fewest < k:
        raise ValueError(f"every problem must have at least k = {k} answers, got {fewest}")
    return [correct_K[:k] for correct_K in correct_PK]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
