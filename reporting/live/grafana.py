"""What the Grafana dashboard shows: its sections and panels. `grafana.py` lays them out."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reporting.live.prometheus import BY_NAME


@dataclass(frozen=True)
class Panel:
    """One panel: queries as (expression, legend)."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    height: int = 8


def of(name: str, how: str = "", **tags: str) -> str:
    """The series of a metric, of the runs that are chosen; `how` is appended to the name (`_bucket`)."""
    assert name in BY_NAME, name
    matchers = ", ".join(['run=~"$run"', *(f'{tag}="{value}"' for tag, value in tags.items())])
    return f"ray_{BY_NAME[name].full_name}{how}{{{matchers}}}"


def since(name: str) -> str:
    """Seconds since a time that a metric holds."""
    return f"time() - {of(f'{name}_timestamp_seconds')}"


def rate(name: str, by: str, how: str = "") -> str:
    """Rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({of(name, how)}[$__rate_interval]))"


def count(name: str, by: str) -> str:
    """Rise of a counter over the shown time, summed by labels."""
    return f"sum by ({by}) (increase({of(name)}[$__range]))"


SECTIONS: dict[str, Sequence[Panel]] = {
    "Run": (
        Panel("Step", [(of("step"), "{{run}}"), (of("max_steps"), "{{run}} of")], kind="stat", width=6, height=4),
        Panel("Time left", [(of("seconds_left"), "{{run}}")], "s", kind="stat", width=6, height=4),
        Panel("Weight version", [(of("weight_version"), "{{run}}")], kind="stat", width=6, height=4),
        Panel("Prompts given up", [(of("prompts_given_up"), "{{run}}")], kind="stat", width=6, height=4),
        Panel(
            "Since the start",
            [(since("started"), "{{run}}"), (since("ended"), "{{run}} since its end")],
            "s",
            kind="stat",
            width=6,
            height=4,
        ),
        Panel("Since the last step", [(since("progress"), "{{run}}")], "s", kind="stat", width=6, height=4),
        Panel("Usual step", [(of("usual_step_seconds"), "{{run}}")], "s", kind="stat", width=6, height=4),
        Panel(
            "Work that is not saved",
            [(f"({of('step')} - {of('checkpoint_step')}) * {of('usual_step_seconds')}", "{{run}}")],
            "s",
            kind="stat",
            width=6,
            height=4,
        ),
    ),
    "Learning": (
        Panel(
            "Accuracy",
            [
                (of("evaluation_accuracy"), "{{run}} {{model}} {{benchmark}} avg@k"),
                (of("evaluation_pass_at_k"), "{{run}} {{model}} {{benchmark}} pass@k"),
            ],
            "percentunit",
        ),
        Panel("Reverse KL", [(of("reverse_kl"), "{{run}}")]),
        Panel("Reward", [(of("reward_mean"), "{{run}}")]),
        Panel("Gradient norm", [(of("gradient_norm"), "{{run}}")]),
        Panel("Loss", [(of("loss"), "{{run}}")]),
        Panel("Learning rate", [(of("learning_rate"), "{{run}}")], "sci"),
        Panel("Entropy", [(of("entropy"), "{{run}}")]),
        Panel("Response length", [(of("response_length_mean"), "{{run}}")]),
        Panel(
            "Shares",
            [
                (of("truncated_fraction"), "{{run}} truncated"),
                (of("importance_capped_fraction"), "{{run}} capped importance"),
            ],
            "percentunit",
        ),
    ),
    "Throughput": (
        Panel("Tokens per second", [(of("throughput_tokens_per_second"), "{{run}} {{role}}")]),
        Panel("Tokens trained per second", [(rate("tokens_trained_total", "run"), "{{run}}")]),
        Panel("Busy workers", [(of("busy_fraction"), "{{run}} {{role}}")], "percentunit"),
        Panel("Seconds by stage", [(of("stage_seconds"), "{{run}} {{stage}}")], "s"),
        Panel(
            "Seconds of a step",
            [
                (f"histogram_quantile(0.5, {rate('step_seconds', 'run, le', '_bucket')})", "{{run}} median"),
                (f"histogram_quantile(0.95, {rate('step_seconds', 'run, le', '_bucket')})", "{{run}} 95 %"),
            ],
            "s",
        ),
        Panel("A slot waits for", [(of("wait_seconds"), "{{run}} {{role}}")], "s"),
        Panel("Queues", [(of("queue_length"), "{{run}} {{queue}}")]),
        Panel(
            "Held up by", [(rate("backpressure_seconds_total", "run, role"), "{{run}} {{role}}")], "percentunit"
        ),
        Panel(
            "Staleness",
            [
                (of("staleness_mean"), "{{run}} mean"),
                (of("staleness_max"), "{{run}} max"),
                (of("staleness_bound"), "{{run}} bound"),
            ],
        ),
    ),
    "Health": (
        Panel("Workers", [(of("workers"), "{{run}} {{role}} {{state}}")]),
        Panel(
            "Workers missing",
            [(f"{of('workers_wanted')} - on (run, role) {of('workers', state='healthy')}", "{{run}} {{role}}")],
        ),
        Panel(
            "Deaths, restarts, suspects",
            [
                (count("deaths_total", "run, role"), "{{run}} {{role}} deaths"),
                (count("restarts_total", "run, role"), "{{run}} {{role}} restarts"),
                (count("suspects_total", "run, role"), "{{run}} {{role}} suspects"),
                (count("given_up_total", "run, role"), "{{run}} {{role}} given up"),
            ],
        ),
        Panel("Learner against engine", [(of("mismatch_kl"), "{{run}}")]),
        Panel(
            "Steps skipped, checkpoints lost",
            [
                (count("skipped_steps_total", "run"), "{{run}} steps skipped"),
                (count("checkpoint_failures_total", "run"), "{{run}} checkpoints not written"),
                (count("checkpoints_damaged_total", "run"), "{{run}} checkpoints damaged"),
            ],
        ),
        Panel(
            "Steps since the newest checkpoint",
            [
                (f"{of('step')} - {of('checkpoint_step')}", "{{run}}"),
                (of("checkpoint_every_steps"), "{{run}} between two"),
            ],
        ),
        Panel(
            "Free disk",
            [
                (of("disk_free_bytes"), "{{run}} {{folder}}"),
                (of("disk_size_bytes"), "{{run}} {{folder}} size"),
                (of("checkpoint_bytes"), "{{run}} a checkpoint"),
            ],
            "bytes",
        ),
    ),
}


# -- grafana -----------------------------------------------------------------------------------------------
# The Grafana dashboard of the metrics in `prometheus_table.py`: `docker/grafana/poweropd.json`.
#
# python -m reporting.live.grafana      writes the file anew


DASHBOARD_PATH = Path(__file__).resolve().parents[2] / "docker" / "grafana" / "poweropd.json"

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for a Prometheus data source and shows the runs chosen."""
    return {
        "title": "poweropd",
        "uid": "poweropd",
        "tags": ["poweropd", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), _run_variable()]},
        "annotations": {"list": []},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    """Sections one below the other, each a row with its panels from left to right."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, section in SECTIONS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "gridPos": place,
                "collapsed": False,
                "panels": [],
            }
        )
        x, y, height = 0, y + 1, 0
        for panel in section:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return panels


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    names = [
        name
        for name, metric in BY_NAME.items()
        if any(re.search(rf"{metric.full_name}(_bucket)?{{", query) for query, _ in panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": "\n\n".join(BY_NAME[name].text for name in names),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": _options(panel),
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "none"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _run_variable() -> dict[str, Any]:
    query = f"label_values(ray_{BY_NAME['step'].full_name}, run)"
    return {
        **{"name": "run", "label": "Run", "type": "query", "datasource": SOURCE, "definition": query},
        **{"query": {"query": query, "refId": "runs"}, "refresh": 2, "sort": 1, "hide": 0},
        **{"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
    }


def dashboard_text() -> str:
    """The dashboard as its file holds it."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD_PATH.write_text(dashboard_text(), encoding="utf-8")
