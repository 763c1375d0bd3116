"""Runs -> one HTML page: all figures as JSON in it, style and script inline, nothing loaded from anywhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting.page.cost import PoolCost, WasteLine, num_cut_off, pool_costs, waste_lines
from reporting.page.curves import learning_figures, time_figures
from reporting.page.figure import Figure
from reporting.page.run_data import RunData
from reporting.page.sample_view import SamplesView, commands, differences, reproduction, samples_view
from reporting.page.summary_table import (
    Faults,
    Verdict,
    advice_of,
    duration,
    faults_of,
    percent,
    summary_rows,
    verdicts,
)
from reporting.page.timeline import timeline_figure

HERE = Path(__file__).parent

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters of JSON that could end a script element, or be read as HTML."""


@dataclass(frozen=True)
class RunView:
    """What the page shows of each run apart."""

    data: RunData
    verdicts: list[Verdict]
    bottleneck: str
    timeline: Figure | None
    faults: Faults
    costs: list[PoolCost]
    waste: list[WasteLine]
    num_cut_off: int
    samples: SamplesView | None
    preflight: list[tuple[str, str, str]]
    """(check, status, message) where the file holds checks."""
    preflight_text: str
    environment: str
    reproduction: list[str]
    commands: list[str]


def render(runs: Sequence[RunData]) -> str:
    """The page of one run, or of several side by side."""
    views = [_view(run) for run in runs]
    learning, times = learning_figures(runs), time_figures(runs)
    timelines = [view.timeline for view in views if view.timeline is not None]
    figures = {figure.key: figure.spec() for figure in [*learning, *times, *timelines]}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=" / ".join(run.name for run in runs),
            views=views,
            summary=summary_rows(runs),
            learning=learning,
            times=times,
            differences=differences(runs) if len(runs) > 1 else [],
            figures=Markup(as_script_json(figures)),
            style=Markup((HERE / "report.css").read_text(encoding="ascii")),
            script=Markup((HERE / "report.js").read_text(encoding="ascii")),
            plotly=Markup(plotly_js()),
            duration=duration,
            percent=percent,
        )
    )


def as_script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return "".join(ESCAPES.get(character, character) for character in text)


@cache
def plotly_js() -> str:
    """The source of plotly.js, as it comes with plotly: 5 MB."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _checks(preflight: Any) -> list[tuple[str, str, str]]:
    checks = preflight.get("checks") if isinstance(preflight, dict) else None
    rows = [row for row in checks if isinstance(row, dict)] if isinstance(checks, list) else []
    return [(str(row.get("key", "")), str(row.get("status", "")), str(row.get("message", ""))) for row in rows]


def _view(run: RunData) -> RunView:
    advice = advice_of(run)
    return RunView(
        data=run,
        verdicts=verdicts(run),
        bottleneck="" if advice is None else f"{advice.text[:1].upper()}{advice.text[1:]}.",
        timeline=timeline_figure(run),
        faults=faults_of(run),
        costs=pool_costs(run),
        waste=waste_lines(run),
        num_cut_off=num_cut_off(run),
        samples=samples_view(run.samples),
        preflight=_checks(run.preflight),
        preflight_text="" if run.preflight is None else json.dumps(run.preflight, indent=2),
        environment=json.dumps(run.environment, indent=2) if run.environment else "",
        reproduction=reproduction(run),
        commands=commands(run),
    )
