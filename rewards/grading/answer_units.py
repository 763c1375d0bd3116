"""A final answer parted into its value and its unit. No torch.

An answer without a unit equals one with any; two different units are different answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.grading.text import clean_answer

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
NO_UNITS = frozenset({"dozen", "half", "quarter", "pair", "mod", "not", "for", "times", "plus", "minus", "over"})

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


def _reading(text: str, unit: str) -> Reading:
    as_text, as_words = AS_TEXT.search(text), AS_WORDS.search(text)
    if as_text and re.search(r"[\d)}\]]\s*$", text[: as_text.start()]):
        text, unit = text[: as_text.start()], as_text.group()
    elif as_words and _are_units(as_words.group(2).lower(), has_space=bool(as_words.group(1))):
        text, unit = text[: as_words.start()], as_words.group()
    value = REMAINING_TEXT.sub(r" \1 ", text)
    return Reading(" ".join(value.split()).rstrip(" .,;:"), _canonical(unit))


def _are_units(words: str, *, has_space: bool) -> bool:
    first, *others = re.split(r"[ /]+", words)
    if NO_UNITS.intersection([first, *others]):
        return False
    return bool(BARE.fullmatch(first)) or (has_space and len(first) >= 3)


def _canonical(text: str) -> str:
    name = text.lower()
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name
