"""What graded responses come to: a row per benchmark and k, as in `eval.jsonl` and in the table of `eval`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import rewards

RIGHT, TIMED_OUT = "right", "timed out"
"""Verdicts of a graded response; others are `wrong`, and `failed` where it could not be compared."""


@dataclass(frozen=True)
class GradedSample:
    """What is kept in memory of one graded response."""

    sample: int
    verdict: str
    answer_class: int
    """The first response to the problem with an equal final answer."""
    num_tokens: int
    is_truncated: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """Accuracy of one model on one benchmark at one k; in [0, 1]. What comes after maj@k is of all n responses."""

    benchmark: str
    n: int
    k: int
    avg_at_k: float
    pass_at_k: float
    pass_at_k_unbiased: float
    maj_at_k: float
    mean_length: float
    """Tokens."""
    truncated_frac: float
    num_problems: int
    num_timed_out: int
    """Responses that took too long to compare with the answer, and count as wrong."""
    grader: str = "strict"
    """How final answers were found: `evaluation.grader`."""

    def row(self) -> dict[str, Any]:
        """As written to `eval.jsonl`."""
        return asdict(self)


AVERAGED = ("avg_at_k", "pass_at_k", "pass_at_k_unbiased", "maj_at_k", "mean_length", "truncated_frac")
"""The numbers of a result of which a mean over benchmarks is taken, each benchmark counting the same."""

SUMMED = ("num_problems", "num_timed_out")


def result_of(
    benchmark: str, samples_PK: Sequence[Sequence[GradedSample]], k: int, *, grader: str = "strict"
) -> BenchmarkResult:
    """The numbers of a benchmark; `samples_PK` holds the n responses of every problem, by sample."""
    correct_PK = [[each.verdict == RIGHT for each in samples] for samples in samples_PK]
    class_PK = [[each.answer_class for each in samples] for samples in samples_PK]
    every = [each for samples in samples_PK for each in samples]
    return BenchmarkResult(
        benchmark=benchmark,
        n=len(samples_PK[0]),
        k=k,
        avg_at_k=rewards.avg_at_k(correct_PK, k),
        pass_at_k=rewards.pass_at_k(correct_PK, k),
        pass_at_k_unbiased=rewards.pass_at_k_unbiased(correct_PK, k),
        maj_at_k=rewards.maj_at_k(class_PK, correct_PK, k),
        mean_length=fmean(each.num_tokens for each in every),
        truncated_frac=fmean(each.is_truncated for each in every),
        num_problems=len(samples_PK),
        num_timed_out=sum(each.verdict == TIMED_OUT for each in every),
        grader=grader,
    )


def mean_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several benchmarks as one: of every share and length the mean, of counts the sum.

    What else is the same in all rows is kept; the benchmark's name is `mean`. One row stays as it is.
    """
    if len(rows) == 1:
        return dict(rows[0])
    shared = {key: value for key, value in rows[0].items() if all(row.get(key) == value for row in rows)}
    means = {key: fmean(row[key] for row in rows if key in row) for key in AVERAGED if any(key in r for r in rows)}
    sums = {key: sum(row[key] for row in rows) for key in SUMMED if all(key in row for row in rows)}
    return shared | {"benchmark": "mean"} | means | sums


def latest_rows(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], dict[str, Mapping[str, Any]]]:
    """Rows of `eval.jsonl` by (step, model), then by benchmark; of what was evaluated twice the last row.

    A step is evaluated again where a run fell back and trained it anew.
    """
    found: dict[tuple[int, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["step"], row["model"]), {})[row.get("benchmark", "")] = row
    return found
