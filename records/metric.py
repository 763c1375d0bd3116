"""What is declared of one key of `metrics.jsonl`: the table of them is `records/metrics.py`.

A share for which a comparison holds is named `frac_` and the comparison (`reward/frac_abs_gt_0.01`); every other
share of a whole ends in `_frac` (`truncated_frac`). Seconds end in `_s`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter

ROLE = "rollout|learner|reference|teacher(?:-.+)?"
VARIABLES = {
    "role": ROLE,
    "queue": f"rollouts|scored|in_flight|{ROLE}",
    "third": "early|middle|late",
    "tenth": "[0-9]",
    "percent": "[0-9.]+",
    "lag": "[0-9]+",
}
"""What the variable part of a key may be; any other is a name without a slash."""


@dataclass(frozen=True)
class Metric:
    """One key, or a family of keys with a variable part in braces."""

    key: str
    unit: str
    text: str
    """What it is, in a sentence."""
    when: str = ""
    """Which rows have it; all if empty."""
    members: Mapping[str, str] = field(default_factory=dict)
    """Of a family: values that every row has, with what each means where its name does not tell."""
    line: str = ""
    """Its part of a step's line, as a format of the row."""
    live: str = ""
    """Its part of the learner's line in the live view and in `status`."""
    hidden_at_zero: bool = False
    """Whether `live` is left out while the value is 0."""
    status: str = ""
    """The part of `status --json` that holds it; all but `metrics` have places of their own in the live view."""
    prometheus: str = ""
    """Its name there, after `ray_poweropd_`; a counter's ends in `_total`. The variable part is a label."""
    report: str = ""
    """Title of the figure of the report that draws it."""

    @property
    def label(self) -> str:
        """Name of the variable part; empty without one."""
        return next((name for _, name, _, _ in Formatter().parse(self.key) if name), "")

    @property
    def required(self) -> list[str]:
        """The keys that every row of a real run has."""
        if self.label:
            return [self.key.format(**{self.label: member}) for member in self.members]
        return [] if self.when else [self.key]

    def matches(self, key: str) -> bool:
        """Whether this declares a key."""
        return self._pattern.fullmatch(key) is not None

    def variable(self, key: str) -> str:
        """Value of the variable part in one of its keys; empty without one."""
        found = self._pattern.fullmatch(key)
        return found[self.label] if found and self.label else ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = Formatter().parse(self.key)
        groups = (
            re.escape(text) + (f"(?P<{name}>{VARIABLES.get(name, '[^/]+')})" if name else "")
            for text, name, _, _ in parts
        )
        return re.compile("".join(groups))


def each(*names: str) -> dict[str, str]:
    """Members of a family whose names tell what they are."""
    return dict.fromkeys(names, "")


def keys_in(template: str) -> set[str]:
    """The keys that a format of a row names.

    >>> sorted(keys_in("length {response_length/mean:.0f} ({truncated_frac:.1%} truncated)"))
    ['response_length/mean', 'truncated_frac']
    """
    return {name for _, name, _, _ in Formatter().parse(template) if name}
