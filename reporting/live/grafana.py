"""The Grafana dashboard of the metrics in `prometheus_table.py`: `docker/grafana/poweropd.json`.

python -m reporting.live.grafana      writes the file anew
"""

import json
import re
from pathlib import Path
from typing import Any

from reporting.live.grafana_panels import SECTIONS, Panel
from reporting.live.prometheus_table import BY_NAME

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
