"""The page of what `objective`, `importance`, ... may name: formulas, parameters, needs, all from the registry."""

from collections.abc import Iterator, Mapping
from typing import Any

import rewards
from docs.generate.configuration_pages import NOTE

INTRODUCTION = f"""{NOTE}
# Parameters of objectives

What the sections of the configuration may name, and which further keys they take then: `--objective.name power
--objective.alpha 1`. [Objectives](../objectives.md) says what they are for, and which of them go together.

In formulas `p` is the student's probability, `t` the teacher's and `y` the sampled token.
"""

TITLES: dict[str, Mapping[str, Any]] = {
    "`objective.name`: rewards of sampled tokens": rewards.TOKEN_REWARDS,
    "`objective.name`: divergences": rewards.DIVERGENCES,
    "`objective.normaliser`": rewards.NORMALISERS,
    "`importance.name`": rewards.IMPORTANCE_WEIGHTS,
    "`masks.selection`": rewards.TOKEN_MASKS,
    "`token_weights.name`": rewards.TOKEN_WEIGHTS,
    "`surrogate.name`": rewards.SURROGATES,
}


def objective_page() -> str:
    """Every entry of the registry with its parameters, defaults and ranges."""
    return INTRODUCTION + "".join(f"\n## {title}\n\n{_table(entries)}" for title, entries in TITLES.items())


def _table(entries: Mapping[str, Any]) -> str:
    rows = ["| name | | parameter | value | default | |", "|---|---|---|---|---|---|"]
    for name, entry in entries.items():
        lines = [*_parameters(entry)] or [("", "", "", "")]
        for number, line in enumerate(lines):
            first = (f"`{name}`", _description(entry)) if number == 0 else ("", "")
            rows.append("| " + " | ".join(part.replace("|", r"\|") for part in (*first, *line)) + " |")
    return "\n".join(rows) + "\n"


def _description(entry: Any) -> str:
    """What the entry is; of an objective also its formula, and what the teacher sends with default parameters."""
    parts = [_escaped(entry.doc)]
    if getattr(entry, "formula", ""):
        parts.append(f"<code>{_escaped(entry.formula)}</code>")
        parts.append(f"The teacher sends {_sent(entry.needs_with(entry.validate({}, field=entry.name)).teacher)}.")
    return "<br>".join(parts)


def _sent(teacher: tuple[str, ...]) -> str:
    if {"full", "ids_query"} & {*teacher}:
        return "the input of its output head"
    return "its top k tokens: ids and log-probs" if "topk" in teacher else "one log-prob"


def _parameters(entry: Any) -> Iterator[tuple[str, str, str, str]]:
    for each in entry.parameters:
        default = "null" if each.default is None else str(each.default).lower()
        yield f"`{each.name}`", _value(each), f"`{default}`", _escaped(each.doc)


def _escaped(formula: str) -> str:
    return formula.replace("*", r"\*").replace("_", r"\_").replace("<", "&lt;")


def _value(parameter: Any) -> str:
    if parameter.choices:
        return " or ".join(f"`{choice}`" for choice in parameter.choices)
    names = {float: "number", int: "integer", bool: "true or false", str: "text"}
    limits = {
        **{">": parameter.above, ">=": parameter.at_least},
        **{"<": parameter.below, "<=": parameter.at_most},
    }
    shown = [f"{sign} {value:g}" for sign, value in limits.items() if value is not None]
    return ", ".join([names[parameter.type], *shown])
