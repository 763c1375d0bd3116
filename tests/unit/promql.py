"""The names in a PromQL expression, without a parser of PromQL: enough for our rules and panels."""

import re

KEYWORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "group_left",
    "group_right",
    "on",
    "ignoring",
    "by",
    "without",
}
NUMBERS = {"inf", "nan"}
MATCHERS = re.compile(r"\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
RANGE = re.compile(r"\[[^\]]*\]|\boffset\s+\w+")
NAME = re.compile(r"(?<![\w.])[A-Za-z_:][\w:]*(?!\w)(?!\s*\()")


def metrics_of(expression: str) -> set[str]:
    """Names of the series that an expression asks for.

    >>> sorted(metrics_of('sum by (run) (rate(a_total{role!="x"}[5m] offset 1h)) > on (run) group_left () 2 * b'))
    ['a_total', 'b']
    """
    for part in (MATCHERS, GROUPING, RANGE):
        expression = part.sub(" ", expression)
    return {name for name in NAME.findall(expression) if name.lower() not in KEYWORDS | NUMBERS}


def labels_of(expression: str) -> set[str]:
    """Names of the labels that an expression selects, groups or joins by.

    >>> sorted(labels_of('sum by (run, role) (a{state="healthy"})'))
    ['role', 'run', 'state']
    """
    matched = {name for block in MATCHERS.findall(expression) for name in re.findall(r"(\w+)\s*(?:=|!)", block)}
    return matched | {name for names in GROUPING.findall(expression) for name in re.findall(r"\w+", names)}
