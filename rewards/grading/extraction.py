r"""A response -> its final answer, as written. No torch.

Both graders take the last `\boxed{}`. Without one, `strict` takes the text after the last `####`, or all of it;
`lenient` reads on as people do:

    the last `####` or "answer is" -> what is stated there
    else                           -> the last expression of the text

A statement with several numbers, a negation or an estimate is kept whole, so that it equals no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Grader = Literal["strict", "lenient"]

BOX_OR_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\boxed(?![A-Za-z{])\s*(?=[^\s{])|\\.|[{}]", re.DOTALL)
UNBRACED = re.compile(
    r"(?:\\text\{[^{}\n]*\}|[^$\s\\.]|\\(?!boxed)[^)\]\n]|\.(?!\s|$)|[ \t](?:and|or)(?=[ \t]+[-\d\\(])"
    r"|[ \t](?!(?:is|as|so|in|to|of|by|we|he|it|if)\b|[A-Za-z]{3}|\\boxed))+"
)
"""What follows a box without braces: up to the end of the formula, sentence or line."""

MAX_READ = 4000
"""Characters from the end of a text in which its last expression is looked for."""
MAX_STATEMENTS = 20
"""Statements of a text that are looked at, from the last."""

SPAN = (
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|(?<![\\\d])\$(?![\s$])"
    r"(?:[A-Za-z]+(?: [A-Za-z]+)*(?=\$)|(?:\\(?:text|math|begin|end)[a-z]*\s?\{[^{}$\n]*\}|"
    r"\\(?!text|math|begin|end)[A-Za-z]+|\\[^A-Za-z\n]|(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])"
    r"|(?<=\d) [A-Za-z]{3,}(?=\$)|[^$\n\\A-Za-z])+)(?<!\s)\$(?!\d)"
)
"""A formula between delimiters; two dollar signs with words between them are amounts of money."""
TOKEN = re.compile(rf"{SPAN}|\S+?(?=\s|$|\$\$|\\[(\[])|\S", re.DOTALL)
SENTENCE = re.compile(rf"((?:{SPAN}|.)*?)([.?]|!(?!\s*[=+*/-]))?(?=[\s\"')]|$)(?(2)|(?=$))", re.DOTALL)

PHRASE = re.compile(
    r"\b(?:answers?|correct (?:option|choice))\b(?:[^.\n:=?]{0,60}?)"
    r"(?:\b(?:is|are|equals|(?:would|should|must|will) be)\b|=|:)[ \t]*:?"
    r"|^[^\w\n]*(?:final )?answer[^\w\n]*$|<answer>",
    re.IGNORECASE | re.MULTILINE,
)
RETRACTION = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*(?:but )?(?:(?:wait|correction|hold on|oops|sorry|hmm|on second thought)\b"
    r"|(?:actually|no),)",
    re.IGNORECASE,
)
REJECTED = re.compile(r"\b(?:wrong|incorrect|mistaken?|error)\b", re.IGNORECASE)
NO_ANSWER = re.compile(
    r"(?:correct|right|valid|reasonable|clear|as follows|below|above|found|known)?", re.IGNORECASE
)
MARKUP = [
    (
        re.compile(
            r"\*\*|__|`|<<[^<>\n]*>>|</?(?:answer|b|strong|s)>|<\|\w+\|>|\b(?:option|choice)\s+(?=\(?[A-Z]\b)"
            r"|(?:\([A-Z]\)|(?<!\S)[A-E]\))\s+(?=\S)",
            re.IGNORECASE,
        ),
        "",
    ),
    (re.compile(r"(?<![\w*])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"(?<!\w)([\"'\u201c])(\S+)[\"'\u201d](?!\w)"), r"\2"),
    (re.compile(r"\bnegative\s+(?=\d)", re.IGNORECASE), "-"),
    (re.compile(r"(?<=\d)!(?=\s*(?:$|[A-Z\n]))"), "."),
]
"""What emphasises or quotes, in Markdown, HTML and GSM8K, and ends of turns; and `-` for a word, and no
factorial at the end of a sentence."""
LAYOUT = re.compile(
    r"^\s*(?:\d+[.)]|[-*+>]|#{1,6})\s+(?=\S)"
    r"|\b(?:step|part|case|problem|question|equation|example|method|option)\s+\(?\d+\)?[:.)]?",
    re.IGNORECASE | re.MULTILINE,
)
"""Numbers and signs that only count or head lines."""

OPERATOR = re.compile(
    r"[-+*/=^<>:\u2212\u00d7\u00f7\u00b7\u2264\u2265\u2260]|!=|\\(?:times|cdot|div|le|ge|leq|geq|ne|neq|pm|cup)"
)
LETTER = re.compile(r"(?![aAI]$)[A-Za-z](?:\([A-Za-z]\))?")
RUN = re.compile(r"[ML](?:O+[ML]|M)*(?:(?:,&?|&)[ML](?:O+[ML]|M)*)*")
"""Of classes of tokens: formulas joined by operators; several of them with commas, `and` or `or` between."""
WORD = re.compile(r"(?<![^\s,;(])[A-Za-z]{2,}(?![^\s,;:.)])")
UNIT = re.compile(
    r"(?:%|\\%|percent|degrees?|dollars?|cents?|dozens?|hundred|thousand|(?:m|b|tr)illion|halves|half|quarters?|pairs?|"
    r"[cdkm]?m|k?g|mg|lbs?|oz|ft|in|yd|feet|foot|inch(?:es)?|(?:yard|mile|met(?:er|re)|hour|minute|second|day|week|month|"
    r"year|gram|lit(?:er|re)|gallon|pound|unit)s?)"
)
FRACTION = r"third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth"
HEDGE = re.compile(
    r"(?:\d\s+(?:to|through|of|out of)|\b(?:one|out) of|\b(?:not|no longer|cannot|never|nor|neither|except"
    r"|anything but|all but|than|least|most|nearly|almost|between|over|under|exceeds|below|above|if|unless)\b"
    r"|n't)[^,;.]*$",
    re.IGNORECASE,
)
FACTOR = re.compile(
    rf"\b(?:(?:hal(?:f|ves)|(?:{FRACTION})s?|roots?|multiples?|factors?|divisors?|digits?|digit sum|square|cube"
    r"|power|reciprocal|inverse|negative|opposite|percent|percentage) of\b"
    r"|(?:twice|half|double|minus|log|ln|sin|cos|tan|sqrt)\b)[^,;.]*$"
    r"|\b(?:times|(?:divisible|divided|multiplied) by)\s+$",
    re.IGNORECASE,
)
"""What makes another number of one, unless the result follows: `6 times 3 = 18`."""
ESTIMATE = re.compile(r"(?:\b(?:about|approximately|around|roughly)\b|[~\u2248])[^,;.]*$", re.IGNORECASE)
"""Before a whole number; before a decimal it says that it is rounded."""
QUALIFIED = re.compile(
    r"\s*(?:or (?:more|less|so|fewer|above|below)|at (?:least|most)|is (?:not|wrong|incorrect)"
    rf"|(?:more|less|fewer) than|and (?:a|one|two|three) (?:half|(?:{FRACTION})s?)|halves|(?:{FRACTION})s"
    r"|pi|choose|mod|modulo|factorial|squared|cubed|times"
    r"|(?:(?:in|de)creased|reduced|divided|multiplied) by)\b|\s*(?:\?|\u03c0)",
    re.IGNORECASE,
)
CLAUSE = re.compile(
    r"[,;(](?!\s*(?:or|and|but|maybe|perhaps)\b)|\s(?:because|since|as|which|where|so|when|that)\b", re.IGNORECASE
)


def extract_answer(text: str, grader: Grader = "strict") -> str:
    """Return the final answer of a response, as written."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    if grader == "strict":
        return text.rpartition("####")[2].strip()
    for part in reversed(RETRACTION.split(text.replace("</answer>", "\n"))):
        found = _last_statement(part) or _last_expression(part)
        if found is not None or REJECTED.search(part):
            return found or ""
    return text.strip()


def _last_boxed(text: str) -> str | None:
    """Return the content of the box that opens last and is balanced; one pass, as bad responses open thousands."""
    open_braces: list[int | None] = []
    last_start, last_content = -1, None
    for token in BOX_OR_BRACE.finditer(text):
        is_box, has_brace = token.group().startswith(("\\box", "\\fbox")), token.group().endswith("{")
        if is_box and has_brace:
            open_braces.append(token.end())
        elif is_box and (content := UNBRACED.match(text, token.end())):
            last_start, last_content = token.end(), content.group()
        elif token.group() == "{":
            open_braces.append(None)
        elif token.group() == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and start > last_start:
                last_start, last_content = start, text[start : token.start()]
    return last_content


def _last_statement(text: str) -> str | None:
    """What the last `####` or "answer is" states; None if none states anything."""
    places = [(match.end(), False) for match in PHRASE.finditer(text)]
    places += [(match.end(), True) for match in re.finditer(r"#{4,}", text)]
    for end, is_hash in sorted(places, reverse=True)[:MAX_STATEMENTS]:
        rest = _bare(text[end : end + MAX_READ]).lstrip(" \t\r\n:=")
        is_display = rest.startswith(("$$", "\\["))
        line = rest if is_display else rest.partition("\n")[0].strip()
        if is_hash and not rest[len(line) :].strip():
            return _of_sentence(line)
        sentence = SENTENCE.match(line)
        assert sentence is not None, "it may be empty"
        stated = sentence[1].strip()
        if is_hash and not any(run.start == 0 for run in _runs(stated)):
            continue  # the heading of a section
        if sentence[2] != "?" and not NO_ANSWER.fullmatch(stated):
            return _of_sentence(stated)
    return None


def _of_sentence(sentence: str) -> str:
    """The one formula of a sentence, or the one that it begins with; else all of it."""
    if not WORD.search(re.sub(r"\\text\s?\{[^{}]*\}", "", sentence)):
        return _cut(sentence)
    runs = _runs(sentence)
    if not runs:
        return CLAUSE.split(sentence, maxsplit=1)[0].strip() or sentence
    first = runs[0]
    rest = sentence[first.end :]
    is_clear = len(runs) == 1 or (first.start == 0 and (CLAUSE.match(rest) or CLAUSE.match(rest.lstrip())))
    return first.text if is_clear and first.is_plain else sentence


def _last_expression(text: str) -> str | None:
    """The last formula of a text; None if there is none, or it is no plain statement."""
    runs = _runs(_plain(text[-MAX_READ:]))
    if not runs:
        return None
    return runs[-1].text if runs[-1].is_plain else ""


def _plain(text: str) -> str:
    return LAYOUT.sub("", _bare(text)).strip()


def _bare(text: str) -> str:
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


@dataclass(frozen=True)
class Run:
    """A formula, or several with commas between them, in a text."""

    start: int
    end: int
    text: str
    is_plain: bool
    """Not denied, estimated, or part of something longer."""


def _runs(text: str) -> list[Run]:
    """Every formula of a text that holds a number or command, in order."""
    tokens = list(TOKEN.finditer(text))
    classes, places = "", list[int]()
    for index, token in enumerate(tokens):
        for each in _classes(token.group()):
            classes += each
            places.append(index)
    return list(_of_classes(text, tokens, classes, places))


def _of_classes(text: str, tokens: list[re.Match[str]], classes: str, places: list[int]) -> Iterator[Run]:
    for match in RUN.finditer(classes):
        if "M" not in match.group():
            continue
        first, last = tokens[places[match.start()]], tokens[places[match.end() - 1]]
        start, end = first.start(), last.start() + len(last.group().rstrip(".,;:!?"))
        before, after = classes[: match.start()], classes[match.end() : match.end() + 1]
        has_unit = after == "W" and UNIT.fullmatch(tokens[places[match.end()]].group().rstrip(".,;:!?"))
        found = _cut(text[start:end])
        if has_unit:
            unit = tokens[places[match.end()]]
            end = unit.start() + len(unit.group().rstrip(".,;:!?"))
            found = f"{found} {text[unit.start() : end]}"
        is_part = (before.endswith("O") and tokens[places[match.start() - 1]].group() not in "=:") or after == "O"
        said, (left, equals, _) = text[:start][-60:], text[start:end].partition("=")
        is_result = equals and not re.search("[A-Za-z]", left)
        is_vague = HEDGE.search(said) or (FACTOR.search(said) and not is_result)
        is_vague = is_vague or (ESTIMATE.search(said) and not re.search(r"\.\d", found))
        is_plain = not (is_part or is_vague or QUALIFIED.match(text, end))
        yield Run(start, end, found, is_plain)


def _classes(token: str) -> str:
    """M for what holds a number or command, O an operator, L a letter, & and , between formulas, W a word.

    A full stop after a token is a class of its own, which no formula spans.
    """
    core = token.rstrip(".,;:!?")
    if OPERATOR.fullmatch(token):
        return "O"
    if not core:
        return "," if token == "," else "."
    kind = "W"
    if re.search(r"\d|\\[A-Za-z]", core) or (len(core) > 2 and re.fullmatch(SPAN, core, re.DOTALL)):
        kind = "M"
    elif core in ("and", "or"):
        kind = "&"
    elif LETTER.fullmatch(core):
        kind = "L"
    elif OPERATOR.fullmatch(core):
        kind = "O"
    end = token[len(core) :]
    return kind + ("" if not end else "," if end == "," else ".")


def _cut(formula: str) -> str:
    """The formula without delimiters and stray brackets, and of `9 * 2 = 18` the result."""
    if re.fullmatch(SPAN, formula, re.DOTALL):
        formula = formula.strip("$") if formula.startswith("$") else formula[2:-2]
    if sum(map(formula.count, "([")) != sum(map(formula.count, ")]")):
        formula = formula.lstrip("(").rstrip(")")
    _, equals, result = formula.rpartition("=")
    is_sum = equals and "," not in formula and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", formula))
    return (result if is_sum else formula).strip(" ")
