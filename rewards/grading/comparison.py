"""Are two final answers equal? Structure, words, units and numbers are compared here; algebra is asked for.

    is_equal(gold, prediction, algebra)

Lists, tuples, intervals, sets and unions are taken apart, and what is left is compared as text, as numbers, or, if
it is LaTeX that means mathematics, by `algebra(gold, prediction)`. When in doubt the answer is wrong. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rewards.grading.numbers import are_equal, parse_number, readings
from rewards.grading.text import compact, enclosed, split_top

Algebra = Callable[[str, str], bool]
Parts = tuple[str, list[str]]
"""Brackets of a container, and what it holds."""

MAX_LENGTH = 2000
"""Characters of an answer that is looked into; longer ones are equal only if they are the same text."""

MAX_PARTS = 40
"""Parts of a list or set that are matched in any order."""

MAX_DEPTH = 6

BASE = re.compile(r"\(?([0-9][0-9A-F]*)\)?_\{?([0-9]+)\}?")
WORDS = re.compile(r"[A-Za-z][A-Za-z ]*")
PROSE = re.compile(r"[A-Za-z]{4,}|[A-Za-z]{2,}\s+[A-Za-z]|(?<![A-Za-z])[A-Za-z]\s+[A-Za-z]{2,}")
NOT_MATHEMATICS = re.compile(
    r"[^-+*/^_=<>|!%:;,.()\[\]{}&\\A-Za-z0-9\s]|\d\s+[\d.]|[\d})]_|[!^_]{3}|\.\d*\.|\d:[0-5]\d(?!\d)"
)
"""Other characters, digits side by side, a subscript of a number, and times of day."""
COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
MATRIX = re.compile(r"\\(?:begin|end)\{[pbBvV]?matrix\}")
KNOWN_COMMANDS = frozenset(
    "\\" + name
    for name in re.split(
        r"\s+",
        r"frac sqrt pi cdot times div pm mp infty cup cap in le ge ne lt gt { } | \ binom mathbb emptyset lfloor "
        r"rfloor lceil rceil sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd min max "
        r"alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau "
        r"phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar",
    )
)
"""Commands whose meaning algebra knows; an answer with another one is compared as text."""


def is_equal(gold: str, prediction: str, algebra: Algebra) -> bool:
    """Whether an extracted answer equals the gold one, which says what is asked: the order of the two matters."""
    if compact(gold) == compact(prediction):
        return True
    if not gold or not prediction or max(len(gold), len(prediction)) > MAX_LENGTH:
        return False
    return any(
        not (one.unit and other.unit and one.unit != other.unit) and _equal(one.value, other.value, algebra, 0)
        for one in readings(gold)
        for other in readings(prediction)
    )


def _equal(gold: str, prediction: str, algebra: Algebra, depth: int) -> bool:
    gold, prediction = _without_outer(gold), _without_outer(prediction)
    if not gold or not prediction or depth > MAX_DEPTH:
        return False
    if compact(gold) == compact(prediction):
        return True
    for split in (_union, _container):
        one, other = split(gold), split(prediction)
        if one is not None and other is not None:
            return _equal_parts(one, other, algebra, depth + 1)
    if _container(gold) is not None or _container(prediction) is not None:
        return _is_mathematics(gold, prediction) and _is_relation(gold, prediction) and algebra(gold, prediction)
    return _equal_atoms(gold, prediction, algebra)


def _equal_atoms(gold: str, prediction: str, algebra: Algebra) -> bool:
    left, right = parse_number(compact(gold)), parse_number(compact(prediction))
    if left is not None and right is not None:
        return are_equal(left, right)
    based = [BASE.fullmatch(compact(text)) for text in (gold, prediction)]
    if any(based):
        return _equal_in_base(based[0], compact(prediction))
    words = [text for text in (gold, prediction) if WORDS.fullmatch(text)]
    if len(words) == 2:
        return gold.casefold() == prediction.casefold() and all(re.search("[a-z]{2}", word) for word in words)
    return _is_mathematics(gold, prediction) and algebra(gold, prediction)


def _equal_in_base(gold: re.Match[str] | None, prediction: str) -> bool:
    """Whether a number has the digits and base of the gold one; the base may be left out, as it was asked for."""
    if BASE.fullmatch(prediction):
        prediction = prediction.replace("(", "").replace(")", "")
    return gold is not None and prediction in (gold[1], f"{gold[1]}_{gold[2]}", f"{gold[1]}_{{{gold[2]}}}")


def _equal_parts(gold: Parts, prediction: Parts, algebra: Algebra, depth: int) -> bool:
    """Compare part by part: in order if one is a tuple or the parts have names, else in any order."""
    (kind, golds), (other_kind, predictions) = gold, prediction
    if len(golds) != len(predictions) or (kind and other_kind and kind != other_kind):
        return False
    has_order = any(each not in ("", r"\{\}", "union") for each in (kind, other_kind))
    if has_order or _named(golds) != _named(predictions):
        return all(_equal(one, other, algebra, depth) for one, other in zip(golds, predictions, strict=True))
    if len(golds) > MAX_PARTS:
        return False
    left = list(predictions)
    for one in golds:
        found = next((i for i, other in enumerate(left) if _equal(one, other, algebra, depth)), None)
        if found is None:
            return False
        del left[found]
    return True


def _union(text: str) -> Parts | None:
    parts = split_top(text, r"\cup")
    return ("union", parts) if len(parts) > 1 else None


def _container(text: str) -> Parts | None:
    """Brackets ('' for a bare list) and parts of a list, tuple, interval or set; None of anything else."""
    pair = enclosed(text)
    kind, content = ("", text) if pair is None else (pair[0] + pair[2], pair[1])
    parts = [sign for part in split_top(content.replace(";", ",")) for sign in _signs(part)]
    return (kind, parts) if len(parts) > 1 else None


def _signs(part: str) -> list[str]:
    """Both values of what holds one plus-minus sign."""
    if part.count(r"\pm") + part.count(r"\mp") != 1:
        return [part]
    return [re.sub(r"\\[pm][pm]", sign, part) for sign in "+-"]


def _named(parts: Sequence[str]) -> set[str]:
    """What the parts say they are values of: {'x', 'y'} of `x=1, y=2`; nothing if that is one thing or none."""
    names = {compact(part.partition("=")[0]) for part in parts if "=" in part}
    return names if len(names) > 1 else set()


def _without_outer(text: str) -> str:
    """The text without braces, or brackets of one part, around all of it: 5 of (5), and of the set of 5."""
    while (pair := enclosed(text)) and (pair[0] == "{" or _holds_one(*pair)):
        text = pair[1]
    return text


def _holds_one(opening: str, content: str, closing: str) -> bool:
    return opening + closing in ("()", r"\{\}") and len(split_top(content)) == 1


def _is_relation(*texts: str) -> bool:
    """Whether one of them is an equation or inequality: `1 < x < 2` may equal (1, 2)."""
    return any(re.search(r"[=<>]|\\(?:le|ge|lt|gt|in|ne)(?![A-Za-z])", text) for text in texts)


def _is_mathematics(*texts: str) -> bool:
    """Whether all are LaTeX that algebra understands, and no prose, of which it would make products of letters."""
    return all(_is_understood(text) for text in texts)


def _is_understood(text: str) -> bool:
    text = MATRIX.sub(" ", text)
    if not KNOWN_COMMANDS.issuperset(COMMAND.findall(text)):
        return False
    bare = COMMAND.sub(" | ", text)
    return not (PROSE.search(bare) or NOT_MATHEMATICS.search(bare))
