"""What graded responses come to: a row per benchmark and k, as in `eval.jsonl` and in the table of `eval`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class GradedSample:
    """What is kept in memory of one graded response."""

    sample: int
    is_correct: bool
    extracted: str
    num_tokens: int
    is_truncated: bool


CorrectPK = Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Measures:
    """The formulas (`rewards/accuracy.py`), of problems by responses in the order of sampling; in [0, 1]."""

    avg_at_k: Callable[[CorrectPK, int], float]
    pass_at_k: Callable[[CorrectPK, int], float]
    unbiased_pass_at_k: Callable[[CorrectPK, int], float]
    maj_at_k: Callable[[Sequence[Sequence[str]], CorrectPK, int], float]
    """Of the extracted answers, and of which of them are right."""


@dataclass(frozen=True)
class BenchmarkResult:
    """Accuracy of one model on one benchmark at one k; fractions in [0, 1], lengths in tokens over all n."""

    benchmark: str
    n: int
    k: int
    avg_at_k: float
    pass_at_k: float
    unbiased_pass_at_k: float
    maj_at_k: float
    mean_length: float
    truncated_frac: float
    num_problems: int

    def row(self) -> dict[str, Any]:
        """As written to `eval.jsonl`."""
        return asdict(self)


AVERAGED = ("avg_at_k", "pass_at_k", "unbiased_pass_at_k", "maj_at_k", "mean_length", "truncated_frac")
"""The numbers of a result of which a mean over benchmarks is taken, each benchmark counting the same."""


def unbiased_pass_at_k(correct_PK: CorrectPK, k: int) -> float:
    """Return the mean over problems of 1 - C(n - c, k) / C(n, k), c right of n (Chen et al. 2021, eq. 1)."""
    return fmean(1 - comb(len(row) - sum(row), k) / comb(len(row), k) for row in correct_PK)


def maj_at_k(extracted_PK: Sequence[Sequence[str]], correct_PK: CorrectPK, k: int) -> float:
    """Return the share of problems whose most frequent answer among the first k is right; of a tie the first."""
    right = []
    for extracted, correct in zip(extracted_PK, correct_PK, strict=True):
        most = Counter(extracted[:k]).most_common(1)[0][0]
        right.append(correct[extracted.index(most)])
    return fmean(right)


def result_of(
    benchmark: str, samples_PK: Sequence[Sequence[GradedSample]], k: int, measures: Measures
) -> BenchmarkResult:
    """The numbers of a benchmark; `samples_PK` holds the n responses of every problem, by sample."""
    correct_PK = [[each.is_correct for each in samples] for samples in samples_PK]
    extracted_PK = [[each.extracted for each in samples] for samples in samples_PK]
    every = [each for samples in samples_PK for each in samples]
    return BenchmarkResult(
        benchmark=benchmark,
        n=len(samples_PK[0]),
        k=k,
        avg_at_k=measures.avg_at_k(correct_PK, k),
        pass_at_k=measures.pass_at_k(correct_PK, k),
        unbiased_pass_at_k=measures.unbiased_pass_at_k(correct_PK, k),
        maj_at_k=measures.maj_at_k(extracted_PK, correct_PK, k),
        mean_length=fmean(each.num_tokens for each in every),
        truncated_frac=fmean(each.is_truncated for each in every),
        num_problems=len(samples_PK),
    )


def mean_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several benchmarks as one: of every number the mean over those that have it.

    What else is the same in all rows is kept; the benchmark's name is `mean`. One row stays as it is.
    """
    if len(rows) == 1:
        return dict(rows[0])
    shared = {key: value for key, value in rows[0].items() if all(row.get(key) == value for row in rows)}
    means = {key: fmean(row[key] for row in rows if key in row) for key in AVERAGED if any(key in r for r in rows)}
    num_problems = sum(row.get("num_problems", 0) for row in rows)
    return shared | {"benchmark": "mean"} | means | ({"num_problems": num_problems} if num_problems else {})


def latest_rows(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], dict[str, Mapping[str, Any]]]:
    """Rows of `eval.jsonl` by (step, model), then by benchmark; of what was evaluated twice the last row.

    A step is evaluated again where a run fell back and trained it anew.
    """
    found: dict[tuple[int, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["step"], row["model"]), {})[row.get("benchmark", "")] = row
    return found
