"""A final answer -> its value and its unit; numbers are read exactly, and compared. No torch.

Both are read from compact plain LaTeX. An answer without a unit equals one with any; two different units are
different answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.grading.text import clean_answer

MAX_NUMBER_LENGTH = 64
"""Longer numbers are compared as text: int() refuses 4,300 digits, and no answer key has 64."""

ROUNDING = Fraction(1, 10**6)
"""A number written with a decimal point may be off by so much, absolutely and relatively: 0.333333 is 1/3."""

NUMBER = re.compile(r"-?(?:[0-9]+/[0-9]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)")
ARGUMENT = r"(?:\{(-?[0-9.]+)\}|([0-9]))"
FRACTION = re.compile(rf"(-?)([0-9]*)\\frac{ARGUMENT}{ARGUMENT}")
MIXED = re.compile(r"(-?)([0-9]+) ([0-9]+)/([0-9]+)")
SCIENTIFIC = re.compile(
    r"(-?)(?:([0-9]*\.?[0-9]+) ?(?:\\times|\\cdot|\*|x) ?)?"
    r"10\^(?:\{([+-]?[0-9]{1,3})\}|\(([+-]?[0-9]{1,3})\)|([0-9]))"
)

GROUPED_BY_COMMAS = re.compile(r"(?<![\d,.(\[])(?<!\\\{)\d{1,3}(?:,\d{3})+(?![\d,])")
REMAINING_TEXT = re.compile(r"\\text\{([^{}]*)\}")
AS_TEXT = re.compile(r"(?:\s*(?:/|\\cdot)?\s*\\text\{[^{}]*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?)+$")
AS_WORDS = re.compile(r"(?<=[\d)}\]])(\s*)([A-Za-z]{2,}(?:[ /]+[A-Za-z]+)*)(?:\^\s*(?:\{\s*\d\s*\}|\d))?$")
BARE = re.compile(
    "(?:mm|cm|dm|km|kg|mg|lbs?|oz|ft|in|yd|hrs?|mins?|secs?|ms|ml|kmh|mph|[ap]m|sq|square|cubic|inch(?:es)?|foot|feet|"
    "(?:yard|mile|(?:centi|kilo|milli)?met(?:er|re)|hour|minute|second|day|week|month|year|dollar|cent|degree|unit|"
    "(?:kilo)?gram|lit(?:er|re)|gallon|pound)s?)"
)
"""Words that are units also where no space is before them; any word of three letters is one after a space."""
NO_UNITS = frozenset(
    {
        *("dozen", "half", "quarter", "pair", "mod", "not", "for", "times", "plus", "minus", "over", "and", "or"),
        *("more", "less", "fewer", "than", "least", "most", "about", "halves", "thirds", "fourths", "fifths"),
        *("tenths", "hundredths", "thousandths", "factorial", "modulo", "choose", "divided", "multiplied"),
        *("increased", "reduced", "pi"),
    }
)
POWERS = frozenset({"squared", "cubed"})
"""No units by themselves, as in `5 squared`; `5 squared metres` are."""

NAMES = [
    (r"\\text|[{}\s.^]|\\cdot|degrees?|units?", ""),
    (r"^(?:square|sq)(.+)$|^(.+?)squared?$", r"\1\g<2>2"),
    (r"^cubic(.+)$|^(.+?)cubed$", r"\1\g<2>3"),
    (r"kilomet(?:er|re)s?", "km"),
    (r"centimet(?:er|re)s?", "cm"),
    (r"millimet(?:er|re)s?", "mm"),
    (r"(?<![a-z])met(?:er|re)s?", "m"),
    (r"kilograms?", "kg"),
    (r"inch(?:es)?", "in"),
    (r"feet|foot", "ft"),
    (r"seconds?|secs?", "s"),
    (r"minutes?|mins", "min"),
    (r"hours?|hrs?", "h"),
    (r"pounds?|lbs", "lb"),
    (r"(?<=[a-z]{3})s(?=\d|$)", ""),
]


@dataclass(frozen=True)
class Reading:
    """One meaning of an answer: its value as plain LaTeX, and the canonical name of its unit, or ''."""

    value: str
    unit: str


def readings(text: str) -> list[Reading]:
    """The meanings of an answer, one or two: `1,000` is a number, and a list as well."""
    cleaned = clean_answer(text)
    is_money = "\\$" in text or (text.lstrip().startswith("$") and text.count("$") % 2 == 1)
    joined = GROUPED_BY_COMMAS.sub(lambda match: match.group().replace(",", ""), cleaned)
    return [_reading(each, "dollar" if is_money else "") for each in dict.fromkeys([joined, cleaned])]


@dataclass(frozen=True)
class Number:
    """An exact value; `is_decimal` if it is written with a decimal point, and may thus be rounded."""

    value: Fraction
    is_decimal: bool
    is_percent: bool


def parse_number(text: str) -> Number | None:
    """The value of a number in compact plain LaTeX, or None if the text is none.

    Numbers are integers, decimals, `1/2`, fractions, mixed numbers, powers of ten, each also with a percent sign.
    """
    bare = text.removesuffix("%")
    if not bare or len(bare) > MAX_NUMBER_LENGTH:
        return None
    try:
        value = _value(bare)
    except (ZeroDivisionError, ValueError):  # 1/0, or 1.2.3 in a fraction
        return None
    return None if value is None else Number(value, is_decimal="." in bare, is_percent=text != bare)


def are_equal(one: Number, other: Number) -> bool:
    """Whether two numbers are equal, up to the rounding of decimals. 50% equals 50 as well as 0.5."""
    if one.is_percent == other.is_percent:
        return _is_close(one, other, 1)
    percent, plain = (one, other) if one.is_percent else (other, one)
    return _is_close(percent, plain, 1) or _is_close(percent, plain, 100)


def _reading(text: str, unit: str) -> Reading:
    as_text, as_words = AS_TEXT.search(text), AS_WORDS.search(text)
    words = set(re.findall("[a-z]+", as_text.group().lower()) if as_text else ()) - {"text"}
    is_unit = as_text and NO_UNITS.isdisjoint(words) and not (words and words <= POWERS)
    if as_text and is_unit and re.search(r"[\d)}\]]\s*$", text[: as_text.start()]):
        text, unit = text[: as_text.start()], as_text.group()
    elif as_words and _are_units(as_words.group(2).lower(), has_space=bool(as_words.group(1))):
        text, unit = text[: as_words.start()], as_words.group()
    value = REMAINING_TEXT.sub(r" \1 ", text)
    return Reading(" ".join(value.split()).rstrip(" .,;:"), _canonical(unit))


def _are_units(words: str, *, has_space: bool) -> bool:
    first, *others = re.split(r"[ /]+", words)
    if NO_UNITS.intersection([first, *others]) or words in POWERS:
        return False
    return bool(BARE.fullmatch(first)) or (has_space and len(first) >= 3)


def _canonical(text: str) -> str:
    name = text.lower()
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _is_close(one: Number, other: Number, divisor: int) -> bool:
    left, right = one.value / divisor, other.value
    if left == right or not (one.is_decimal or other.is_decimal):
        return left == right
    return abs(left - right) <= ROUNDING * min(1, max(abs(left), abs(right)))


def _value(text: str) -> Fraction | None:
    if NUMBER.fullmatch(text):
        return Fraction(text)
    if match := FRACTION.fullmatch(text):
        sign, whole, *parts = match.groups(default="")
        above, below = Fraction(parts[0] + parts[1]), Fraction(parts[2] + parts[3])
        return _signed(sign, whole, above / below)
    if match := MIXED.fullmatch(text):
        sign, whole, above, below = match.groups()
        return _signed(sign, whole, Fraction(int(above), int(below)))
    if match := SCIENTIFIC.fullmatch(text):
        sign, factor, *exponents = match.groups(default="")
        return _signed(sign, "", Fraction(factor or 1) * Fraction(10) ** int("".join(exponents)))
    return None


def _signed(sign: str, whole: str, part: Fraction) -> Fraction | None:
    """The value of a mixed number; None if its part is no proper fraction, as in 2 3/2."""
    if whole and not 0 <= part < 1:
        return None
    return (Fraction(whole or 0) + part) * (-1 if sign else 1)
