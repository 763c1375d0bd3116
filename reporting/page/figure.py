"""Figures as plotly.js takes them: JSON of traces and layout, drawn by the page. Nothing is drawn in Python.

Colours are written `theme:0` to `theme:7` (or `theme:0/0.2`, with an opacity): the page puts the palette of its
colour scheme in their place, and so follows it when it changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from typing import Any

from reporting.page.run_data import Row, RunData, number

MAX_POINTS = 1000
"""Points of a curve; of more, the smallest and largest of every stretch are kept."""

MAX_FINE_DECADES = 3
"""A logarithmic axis of more decades has a tick per decade, else three."""

DASHES = ("solid", "dash", "dot", "dashdot")
NUM_COLORS = 8

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of the page; `caption` says in a sentence or two how to read it."""

    key: str
    title: str
    caption: str
    traces: Sequence[Trace]
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 320
    """In pixels; what the legend needs comes on top."""
    is_wide: bool = False

    def spec(self) -> dict[str, Any]:
        """What the page draws: valid JSON, numbers that are not finite are null."""
        return {"data": cleaned(list(self.traces)), "layout": cleaned(dict(self.layout)), "height": self.height}


def cleaned(value: Any) -> Any:
    """The same value with null for every number that is not finite."""
    match value:
        case dict():
            return {str(key): cleaned(each) for key, each in value.items()}
        case list() | tuple():
            return [cleaned(each) for each in value]
        case float() if not isfinite(value):
            return None
    return value


def plain(text: object) -> str:
    """A text that plotly.js, which knows some tags, shows as it is."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def color(index: int, opacity: float | None = None) -> str:
    """Colour `index` of the palette, whichever scheme the page has."""
    return f"theme:{index % NUM_COLORS}" + ("" if opacity is None else f"/{opacity}")


def axes(xlabel: str, ylabel: str, **y: Any) -> dict[str, Any]:
    """Layout of two labelled axes; `y` are further settings of the vertical one."""
    return {"xaxis": {"title": {"text": xlabel}}, "yaxis": {"title": {"text": ylabel}, **y}}


def by_step(ylabel: str, **y: Any) -> dict[str, Any]:
    """Layout of a curve by optimizer step."""
    return axes("optimizer step", ylabel, **y)


def logarithmic(traces: Sequence[Trace]) -> dict[str, Any]:
    """Settings of a logarithmic vertical axis for these traces: few enough ticks that labels never meet."""
    values = [value for trace in traces for value in trace["y"] if value > 0]
    if not values:
        return {"type": "log"}
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    digits = (1, 2, 5) if high - low <= MAX_FINE_DECADES else (1,)
    ticks = [digit * 10.0**decade for decade in range(low, high + 1) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def points(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite number under a key, thinned out to `MAX_POINTS`."""
    found = [(step, value) for row in rows if (step := number(row, "step")) is not None
             and (value := number(row, key)) is not None]  # fmt: skip
    kept = thinned(found)
    return [step for step, _ in kept], [value for _, value in kept]


def thinned(found: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `limit` of these points, in order: of every stretch the smallest and the largest value."""
    if len(found) <= limit:
        return list(found)
    stretch = -(-2 * len(found) // limit)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(found), stretch):
        part = found[start : start + stretch]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


def line(x: Sequence[float], y: Sequence[float], name: str, index: int, *, dash: int = 0, **more: Any) -> Trace:
    """A curve in colour `index`; few points are marked."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 30 else "lines",
        "x": list(x),
        "y": list(y),
        "name": plain(name),
        "line": {"color": color(index), "dash": DASHES[dash % len(DASHES)], "width": 2},
        "marker": {"color": color(index), "size": 5},
        **more,
    }


def metric_lines(runs: Sequence[RunData], names: Mapping[str, str]) -> list[Trace]:
    """Curves of metrics (labels by key): a colour per run and a dash per metric; of one run a colour each."""
    traces = []
    for place, run in enumerate(runs):
        for index, (key, label) in enumerate(names.items()):
            x, y = points(run.rows, key)
            if x and len(runs) == 1:
                traces.append(line(x, y, label, index))
            elif x:
                name = run.name if len(names) == 1 else f"{run.name}: {label}"
                traces.append(line(x, y, name, place, dash=index))
    return traces
