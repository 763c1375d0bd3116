"""Outcome reward: is the final answer of a response right? No torch.

The final answer is the last balanced `\\boxed{}`, else the text after the last `####`, else the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_NUMBER_LENGTH = 64
"""Longer numbers are compared as text: int() refuses 4,300 digits, and no answer key has 64."""

BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
NUMBER = re.compile(r"-?(?:[0-9]+/[0-9]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)")
GROUPED_DIGITS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
SPACE_BESIDE_SYMBOL = re.compile(r"\s+(?=\W)|(?<=\W)\s+")


def grade_batch(predictions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Return, for every prediction, whether its final answer equals that of the answer beside it.

    >>> grade_batch(["so \\\\boxed{1,000}", "x = 3 #### 1/2", "7"], ["1000", "0.5", "8"])
    [True, True, False]
    """
    if len(predictions) != len(answers):
        raise ValueError(f"predictions and answers must pair up, got {len(predictions)} and {len(answers)}")
    return [_is_equal(*pair) for pair in zip(predictions, answers, strict=True)]


def extract_answer(text: str) -> str:
    """Return the final answer of a response, as written."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return text.rpartition("####")[2].strip()


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


def _is_equal(prediction: str, answer: str) -> bool:
    left, right = normalise_answer(extract_answer(prediction)), normalise_answer(extract_answer(answer))
    left_number, right_number = parse_number(left), parse_number(right)
    if left_number is not None and right_number is not None:
        return left_number == right_number
    return left == right


def normalise_answer(text: str) -> str:
    """Return the answer without leading plus, thousands separators and spaces that do not part two words."""
    spaced = " ".join(text.split())
    joined = SPACE_BESIDE_SYMBOL.sub("", spaced).removeprefix("+")
    return GROUPED_DIGITS.sub(lambda match: match.group().replace(",", ""), joined)


def parse_number(text: str) -> Fraction | None:
    """Return the exact value of an integer, decimal or fraction, or None if the text is none of them."""
    if len(text) > MAX_NUMBER_LENGTH or not NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None
