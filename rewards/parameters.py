"""How a registry entry is configured: parameters, their bounds, and the check of user input. No torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

Value = float | int | bool | str | None
Params = dict[str, Value]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a registry entry: `default` None means that it may be left out.

    >>> Parameter("alpha", float, 5.0, "exponent", above=0, at_most=1000).check(0, "objective")
    ValueError: objective.alpha must be > 0 and <= 1000, got 0
    """

    name: str
    type: type[float] | type[int] | type[bool] | type[str]
    default: Value
    doc: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: object, field: str) -> Value:
        """Return `value` as this parameter's type, or raise a ValueError that names `field` and parameter.

        A number may arrive as text, since YAML 1.1 reads `1e-3` as a string; `none` may too.
        """
        if self.default is None and (value is None or value == "none"):
            return None
        try:
            converted = self._convert(value)
        except (TypeError, ValueError, OverflowError):
            converted = None
        if converted is None or not self._is_within_bounds(converted):
            raise ValueError(f"{field}.{self.name} must be {self.requirement()}, got {value!r}")
        return converted

    def requirement(self) -> str:
        """Return what a value has to be, as the end of the sentence "alpha must be ..."."""
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        kind = {float: "a finite number", int: "an integer", bool: "true or false", str: "text"}[self.type]
        if self.choices:
            kind = "one of " + ", ".join(self.choices)
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        if limits:
            kind = limits if self.type is float else f"{kind} {limits}"
        return f"{kind}, or none" if self.default is None else kind

    def _convert(self, value: object) -> float | int | bool | str:
        if self.type in (bool, str):
            if not isinstance(value, self.type):
                raise TypeError(value)
            return value
        if isinstance(value, bool) or not isinstance(value, Real | str):
            raise TypeError(value)
        number = float(value)
        if self.type is float:
            return number
        if not number.is_integer():
            raise ValueError(value)
        return int(number)

    def _is_within_bounds(self, value: float | int | bool | str) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )


@dataclass(frozen=True)
class Rule:
    """A condition on several parameters; `must` ends the sentence "objective.low must ..."."""

    parameter: str
    must: str
    holds: Callable[[Mapping[str, Any]], bool]

    def check(self, params: Params, field: str) -> None:
        """Raise a ValueError with the offending values when the condition does not hold."""
        if not self.holds(params):
            values = ", ".join(f"{name} = {value}" for name, value in params.items())
            raise ValueError(f"{field}.{self.parameter} must {self.must}, got {values}")


def _low_is_below_high(params: Mapping[str, Any]) -> bool:
    return params["low"] < params["high"]


LOW_BELOW_HIGH = Rule("low", "be < high", _low_is_below_high)
"""The interval [low, high] has a width."""


def check_params(
    owner: str,
    parameters: tuple[Parameter, ...],
    rules: tuple[Rule, ...],
    given: Mapping[str, object],
    field: str,
) -> Params:
    """Return every parameter of `owner` with its given or default value, or raise a one-line ValueError."""
    known = [parameter.name for parameter in parameters]
    for name in given:
        if name not in known:
            takes = f"{', '.join(known)} (nearest: {nearest(name, known)})" if known else "no parameters"
            raise ValueError(f"{field}.{name} is unknown: {owner} takes {takes}")
    params = {
        parameter.name: parameter.check(given[parameter.name], field)
        if parameter.name in given
        else parameter.default
        for parameter in parameters
    }
    for rule in rules:
        rule.check(params, field)
    return params


def check_name(field: str, name: str, known: Iterable[str]) -> None:
    """Raise a ValueError that lists the known names and the nearest one when `name` is none of them."""
    names = sorted(known)
    if name not in names:
        hint = f" (nearest: {nearest(name, names)})" if names else ""
        raise ValueError(f"{field} must be one of {', '.join(names)}, got {name!r}{hint}")


def nearest(name: str, known: list[str]) -> str:
    """Return the entry of the non-empty list `known` that is spelled most like `name`."""
    return difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
