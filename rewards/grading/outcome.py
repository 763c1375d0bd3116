"""Outcome reward: is the final answer of a response right? No torch.

    response --extract_answer--> answer --is_equal--> right or wrong
                                            |-- algebra, in worker processes (rewards/grading/pool.py)

`extraction.py` finds the final answer, by one of two graders. What is equal as text or as a number is decided
here; algebra is left to processes that may be ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.grading.comparison import is_equal
from rewards.grading.extraction import Grader, extract_answer
from rewards.grading.pool import Verdict, shared_pool


@dataclass(frozen=True)
class Graded:
    """What became of a response."""

    extracted: str
    """Its final answer, as written."""
    verdict: Verdict


def grade_batch(predictions: Sequence[str], answers: Sequence[str], grader: Grader = "strict") -> list[bool]:
    """Return, for every prediction, whether its final answer equals that of the answer beside it.

    Blocks; may be called from any thread. Answers that take algebra more than 5 s of CPU time, or on which it
    fails, are wrong; `grade_verdicts` tells them apart.

    >>> grade_batch(["so \\\\boxed{1,000}", "x = 3 #### 1/2", "7"], ["1000", "0.5", "8"])
    [True, True, False]
    """
    return [verdict is Verdict.RIGHT for verdict in grade_verdicts(predictions, answers, grader)]


def grade_verdicts(predictions: Sequence[str], answers: Sequence[str], grader: Grader = "strict") -> list[Verdict]:
    """As `grade_batch`, but what became of every pair: right, wrong, timed out or failed."""
    return [each.verdict for each in grade_responses(predictions, answers, grader)]


def grade_responses(predictions: Sequence[str], answers: Sequence[str], grader: Grader = "strict") -> list[Graded]:
    """As `grade_batch`, with what became of every pair, and the final answer that was compared.

    Reference answers are read by `strict`. What it takes for right, `lenient` does too.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"predictions and answers must pair up, got {len(predictions)} and {len(answers)}")
    golds = [extract_answer(answer) for answer in answers]
    graded = _graded(golds, [extract_answer(text, grader) for text in predictions])
    if grader == "strict":
        return graded
    whole = [extract_answer(text) for text in predictions]
    left = [i for i, each in enumerate(graded) if each.verdict is not Verdict.RIGHT and each.extracted != whole[i]]
    for i, again in zip(left, _graded([golds[i] for i in left], [whole[i] for i in left]), strict=True):
        if again.verdict is Verdict.RIGHT:
            graded[i] = again
    return graded


def compare_answers(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Whether the second of each pair equals the first, the gold one; both are extracted answers."""
    decided = {pair: _decide(*pair) for pair in dict.fromkeys(pairs)}
    open_pairs = [pair for pair, verdict in decided.items() if verdict is None]
    if open_pairs:
        decided |= zip(open_pairs, shared_pool().compare(open_pairs), strict=True)
    return [decided[pair] or Verdict.WRONG for pair in pairs]


def equality_classes(answers: Sequence[str]) -> list[int]:
    """Number answers so that equal ones have one number, the position of the first of them, as `maj_at_k` needs.

    An answer that equals several earlier ones (0.333333 may equal 1/3 and 0.3333335) goes with the first.

    >>> equality_classes(["1/2", "3", "0.5"])
    [0, 1, 0]
    """
    classes: list[int | None] = [None] * len(answers)
    for first, representative in enumerate(answers):
        if classes[first] is not None:
            continue
        rest = [i for i in range(first, len(answers)) if classes[i] is None]
        verdicts = compare_answers([(representative, answers[i]) for i in rest])
        for i, verdict in zip(rest, verdicts, strict=True):
            if verdict is Verdict.RIGHT:
                classes[i] = first
    return [each for each in classes if each is not None]


class _NeedsAlgebraError(Exception):
    """Text and numbers alone do not decide."""


def _graded(golds: Sequence[str], extracted: Sequence[str]) -> list[Graded]:
    verdicts = compare_answers(list(zip(golds, extracted, strict=True)))
    return [Graded(answer, verdict) for answer, verdict in zip(extracted, verdicts, strict=True)]


def _decide(gold: str, prediction: str) -> Verdict | None:
    """The verdict if it takes no algebra, else None."""
    try:
        return Verdict.RIGHT if is_equal(gold, prediction, _no_algebra) else Verdict.WRONG
    except _NeedsAlgebraError:
        return None


def _no_algebra(gold: str, prediction: str) -> bool:
    raise _NeedsAlgebraError
