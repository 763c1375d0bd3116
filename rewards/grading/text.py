"""Final answers as plain LaTeX: one spelling per command, without what does not change their meaning. No torch.

This is the first step of comparing: `clean_answer` for reading on, `compact` for comparing as text.
"""

from __future__ import annotations

import re

UNICODE = {
    0x2212: "-",
    0x2013: "-",
    0xD7: r"\times ",
    0xB7: r"\cdot ",
    0x22C5: r"\cdot ",
    0xF7: r"\div ",
    0x3C0: r"\pi ",
    0x221A: r"\sqrt ",
    0x2264: r"\le ",
    0x2265: r"\ge ",
    0x2260: r"\ne ",
    0x221E: r"\infty ",
    0xB0: r"^\circ ",
    0x222A: r"\cup ",
    0x2229: r"\cap ",
    0x2208: r"\in ",
    0x2205: r"\emptyset ",
    0xB1: r"\pm ",
    0xB2: "^2",
    0xB3: "^3",
    0x2019: "'",
    0x2032: "'",
    0xA0: " ",
    0x2009: " ",
    0x202F: " ",
    0xFF0C: ",",
    0x2026: r"\ldots ",
}
"""LaTeX of the code points that people and models write in its place."""

TEXT_COMMAND = (
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc)?|math(?:rm|it|bf|sf|tt)|[mh]box|operatorname|boldsymbol)\s*\{"
)
NAME = r"sqrt|pi|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|infinity"

SYNONYMS = [
    (r",\\!\s*|(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3})", ","),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:left|right)(?![A-Za-z])\.?|\\[bB]igg?[lr]?(?![A-Za-z])", ""),
    (r"\\(?:displaystyle|textstyle|limits|nolimits)(?![A-Za-z])|\\!", ""),
    (r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
    (TEXT_COMMAND, r"\\text{"),
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<=\S)~", " "),
    (r"\\\$|\$|(?<!\\)\\[()\[\]]", ""),
    (r"\\%|\\text\{\s*(?:%|percent)\s*\}|(?<=[\d\s}])(?:percent|pct)\b", "%"),
    (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])", r"\\le "),
    (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])", r"\\ge "),
    (r"\\(?:neq|ne)(?![A-Za-z])", r"\\ne "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\(?:dots|cdots|dotsc)(?![A-Za-z])|\.\.\.", r"\\ldots "),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", " "),
    (r"\^\s*\{?\s*\\prime\s*\}?|\\prime(?![A-Za-z])", "'"),
    (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+", ", "),
    (r"\\log\s*_\s*(\d)(?!\d)", r"\\log_{\1}"),
    (rf"\bnp\.(?=(?:{NAME})\b)", ""),
    (rf"(?<![\\A-Za-z])({NAME})(?![A-Za-z])", r"\\\1 "),
    (r"\\infinity(?![A-Za-z])", r"\\infty "),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\^\s*\(((?:[^()]|\([^()]*\))*)\)", r"^{\1}"),
    (r"\s!=", r" \\ne "),
    (r"^\s*\\text\{([^{}]*)\}\s*$", r"\1"),
]
PATTERNS = [(re.compile(pattern), replacement) for pattern, replacement in SYNONYMS]

GROUPED_BY_SPACES = re.compile(r"(?<![\d,.])(?<!\d\s)\d{1,3}(?:\s\d{3})+(?![\d,]|\s\d|\s*/)")
MAGNITUDE = re.compile(r"(?<=\d)\s*(?:\\text\{)?\s*(hundred|thousand|million|billion|trillion)\b\s*\}?")
MAGNITUDES = {"hundred": "e2", "thousand": "e3", "million": "e6", "billion": "e9", "trillion": "e12"}
RECURRING = re.compile(r"(?<![\d.])(\d{0,12})\.(\d{0,12})\\overline\s*\{(\d{1,12})\}")
SPACE_BESIDE_SYMBOL = re.compile(r"\s+(?=\W)|(?<=\W)\s+")
EMPHASIS = re.compile(r"^\s*(\*\*|__)(.+)\1[\s.]*$", re.DOTALL)


def clean_answer(text: str) -> str:
    """The answer as plain LaTeX: no layout, fonts, currency signs, degree signs or final full stop."""
    text = EMPHASIS.sub(r"\2", text.translate(UNICODE))
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    text = RECURRING.sub(_recurring_as_fraction, " ".join(text.split()))
    text = MAGNITUDE.sub(lambda match: MAGNITUDES[match.group(1)], text)
    text = GROUPED_BY_SPACES.sub(lambda match: "".join(match.group().split()), text)
    return re.sub(r"^(?:\\approx|=|:)\s*", "", text.lstrip(" ,;:").rstrip(" .,;:"))


def compact(text: str) -> str:
    """The text without a leading plus and without spaces that do not part two words."""
    return SPACE_BESIDE_SYMBOL.sub("", " ".join(text.split())).removeprefix("+")


def split_top(text: str, separator: str = ",") -> list[str]:
    """The parts between the separators that stand in no brackets, stripped.

    >>> split_top("(1,2), 3")
    ['(1,2)', '3']
    """
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth <= 0 and text.startswith(separator, position):
            parts.append(text[start:position].strip())
            start = position + len(separator)
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket if one pair encloses all: `(3,4]`, `\\{1\\}`; else None."""
    opening = next((each for each in ("(", "[", "\\{", "{") if text.startswith(each)), None)
    closing = next((each for each in (")", "]", "\\}", "}") if text.endswith(each)), None)
    if opening is None or closing is None or (opening[-1] == "{") != (closing[-1] == "}"):
        return None
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and len(opening) <= position < len(text) - 1:
            return None
    if depth != 0:
        return None
    return opening, text[len(opening) : -len(closing)].strip(), closing


def _recurring_as_fraction(match: re.Match[str]) -> str:
    """0.1\\overline{6} is (16 - 1) / 90."""
    whole, fixed, recurring = match.groups()
    above = int((whole or "0") + fixed + recurring) - int((whole or "0") + fixed)
    below = int("9" * len(recurring) + "0" * len(fixed))
    return f"\\frac{{{above}}}{{{below}}}"
