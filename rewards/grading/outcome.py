"""Outcome reward: is the final answer of a response right? No torch.

    response --extract_answer--> answer --is_equal--> right or wrong
                                            |-- algebra, in worker processes (rewards/grading/pool.py)

The final answer is the last balanced `\\boxed{}`, else the text after the last `####`, else the whole text. What
is equal as text or as a number is decided here; algebra is left to processes that may be ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.grading.comparison import is_equal
from rewards.grading.pool import Verdict, shared_pool

BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def grade_batch(predictions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Return, for every prediction, whether its final answer equals that of the answer beside it.

    Blocks; may be called from any thread. Answers that take algebra more than 5 s of CPU time, or on which it
    fails, are wrong; `grade_verdicts` tells them apart.

    >>> grade_batch(["so \\\\boxed{1,000}", "x = 3 #### 1/2", "7"], ["1000", "0.5", "8"])
    [True, True, False]
    """
    return [verdict is Verdict.RIGHT for verdict in grade_verdicts(predictions, answers)]


def grade_verdicts(predictions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
    """As `grade_batch`, but what became of every pair: right, wrong, timed out or failed."""
    if len(predictions) != len(answers):
        raise ValueError(f"predictions and answers must pair up, got {len(predictions)} and {len(answers)}")
    pairs = [
        (extract_answer(answer), extract_answer(prediction))
        for prediction, answer in zip(predictions, answers, strict=True)
    ]
    return compare_answers(pairs)


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


def extract_answer(text: str) -> str:
    """Return the final answer of a response, as written."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return text.rpartition("####")[2].strip()


class _NeedsAlgebraError(Exception):
    """Text and numbers alone do not decide."""


def _decide(gold: str, prediction: str) -> Verdict | None:
    """The verdict if it takes no algebra, else None."""
    try:
        return Verdict.RIGHT if is_equal(gold, prediction, _no_algebra) else Verdict.WRONG
    except _NeedsAlgebraError:
        return None


def _no_algebra(gold: str, prediction: str) -> bool:
    raise _NeedsAlgebraError


def _last_boxed(text: str) -> str | None:
    """Return the content of the balanced box that opens last; one pass, as bad responses open thousands."""
    open_braces: list[int | None] = []
    last_start, last_content = -1, None
    for token in BOX_OR_BRACE.finditer(text):
        if token.group().startswith("\\boxed"):
            open_braces.append(token.end())
        elif token.group() == "{":
            open_braces.append(None)
        elif token.group() == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and start > last_start:
                last_start, last_content = start, text[start : token.start()]
    return last_content
