"""Are two mathematical expressions equal? math-verify (on sympy) says so, within bounds that keep wrong ones out.

Only worker processes import this: an expression may take any time and memory, and nothing here limits it.
math-verify's own time-outs are switched off: they are signals of wall-clock time, after which an answer is lost
without a word on a busy machine, and which no thread may set.

Its search for something that can be parsed is left out, too: a text is read as a whole or not at all.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

import sympy
from antlr4 import Token
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import verify
from math_verify.grader import is_assignment_relation, is_equation, is_relation, take_last_relation
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
"""Without math-verify's units, among which are `t`, `h` and `c`: it would take 3t for 3."""

MAX_RELATIVE_ERROR = 2e-6
"""Of constants that math-verify calls equal: it rounds to 6 decimals, also 1e-7 and 2e-7."""

IMAGINARY = re.compile(r"(?<![A-Za-z\\_])i(?![A-Za-z])")
"""math-verify takes an i that stands alone for the imaginary unit, and the one of 2i for a variable."""

COMMAND_OR_LETTER = re.compile(r"\\(?:begin|end)\{[a-zA-Z]*\}|\\[A-Za-z]+|[A-Za-z]")

CONSTANTS = ("I", r"\gamma", r"\Gamma")
"""To the parser the imaginary unit, and both others Euler's constant."""


class NotReadError(Exception):
    """The parser stopped before the end of the text."""


def are_equal_expressions(gold: str, prediction: str) -> bool:
    """Whether two pieces of plain LaTeX are equal; anything sympy raises may be raised."""
    gold, prediction = _with_plain_letters(gold, prediction)
    is_real = not any(map(IMAGINARY.search, (gold, prediction)))
    one, other = _parsed(gold, is_real=is_real), _parsed(prediction, is_real=is_real)
    if not _is_comparable(one, other):
        return False
    is_equal = verify(
        one, other, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True, float_rounding=6
    )
    return is_equal and _is_plausible(one, other)


def _parsed(text: str, *, is_real: bool) -> Any:
    """The expression that all of a text stands for; whatever the parser raises if it stands for none."""
    text = normalize_latex(IMAGINARY.sub(" i ", text), NORMALIZATION)
    converter = _Latex2Sympy(is_real=is_real, config=ConversionConfig(lowercase_symbols=False))
    parser = converter.create_parser(text)
    parser.math()
    stopped_at: Any = parser.getCurrentToken()
    if stopped_at.type != Token.EOF:
        raise NotReadError(text)
    return _with_fixed_derivatives(converter.parse(text))


def _with_fixed_derivatives(parsed: Any) -> Any:
    """Derivatives of unknown functions as symbols: the parser takes their x for a constant, and dx/dt for 0."""
    if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
        return parsed
    derivatives: set[Any] = parsed.atoms(sympy.Derivative)
    names = {
        each: sympy.Symbol(f"d({sympy.sstr(each.expr)})/d({each.variables})", real=True)
        for each in derivatives
        if not each.expr.free_symbols <= set(each.variables)
    }
    fixed = parsed.xreplace(names) if names else parsed
    return fixed.doit() if fixed.has(sympy.Derivative) else fixed


def _with_plain_letters(*texts: str) -> list[str]:
    """Rename what is a number to the parser, to letters that do not occur."""
    found = {each for text in texts for each in COMMAND_OR_LETTER.findall(text)}
    free = (letter for letter in "zyxwvutsrqponmlkjhgcba" if letter not in found)
    names = {each: next(free, each) for each in CONSTANTS if each in found}
    return [COMMAND_OR_LETTER.sub(lambda match: names.get(match.group(), match.group()), text) for text in texts]


def _is_comparable(gold: Any, prediction: Any) -> bool:
    """Not if an equation that is no `x = 5` or `f(x) = 5` answers what asks for a value: 2x + 3 = 5 is not 5."""
    if not is_equation(prediction) or is_relation(gold):
        return True
    if is_assignment_relation(prediction):
        return True
    left = prediction.lhs if isinstance(prediction, sympy.Eq) else prediction._unsorted_args[0].lhs
    last = take_last_relation(prediction).rhs
    return isinstance(left, AppliedUndef) or bool(verify(left, last, timeout_seconds=None))


def _is_plausible(gold: Any, prediction: Any) -> bool:
    """Whether what math-verify calls equal is: values relatively, equations by more than having no solution."""
    if isinstance(gold, Relational) and isinstance(prediction, Relational):
        return _have_same_solutions(gold, prediction)
    numbers = [_values(each) for each in (gold, prediction)]
    if not numbers[0] or len(numbers[0]) != len(numbers[1]):
        return True
    return all(_is_close(one, other) for one, other in zip(*numbers, strict=True))


def _have_same_solutions(gold: Any, prediction: Any) -> bool:
    """Whether both sides of two relations are equal at the same numbers of a letter, and at one at least."""
    gold, prediction = (each.lhs - each.rhs for each in (gold, prediction))
    if not gold.free_symbols or not prediction.free_symbols:
        return False
    if sympy.simplify(gold - prediction) == 0 or sympy.simplify(gold + prediction) == 0:
        return True
    for symbol in sorted(gold.free_symbols & prediction.free_symbols, key=str):
        roots: list[Any] = [sympy.solve(each, symbol) for each in (gold, prediction)]
        one, other = ([value for root in each for value in _values(root)] for each in roots)
        if one:
            return len(one) == len(other) and all(any(_is_close(a, b) for b in other) for a in one)
    return False


def _values(expression: Any) -> list[complex]:
    """The value of an expression, or those of the elements of a matrix, at numbers drawn for its symbols.

    The same symbols have the same numbers. Nothing for what has no value.
    """
    if isinstance(expression, sympy.Eq):
        expression = expression.rhs
    elements = expression.flat() if isinstance(expression, sympy.MatrixBase) else [expression]
    if not all(isinstance(each, sympy.Expr) for each in elements):
        return []
    symbols = {symbol for each in elements for symbol in each.free_symbols}
    at = {symbol: sympy.Rational(Random(str(symbol)).randint(10**6, 2 * 10**6), 10**6) for symbol in symbols}
    values = [each.xreplace(at).evalf(20) for each in elements]
    return [complex(value) for value in values] if all(value.is_number for value in values) else []


def _is_close(gold: complex, prediction: complex) -> bool:
    """Relatively, or one as a percentage of the other; nothing is relative to an exact 0."""
    factors = (1, 100, 0.01)
    return 0 in (gold, prediction) or any(
        abs(gold - prediction * factor) <= MAX_RELATIVE_ERROR * abs(gold) for factor in factors
    )
