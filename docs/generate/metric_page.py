"""The page of metrics: what every key of `metrics.jsonl` means and where it shows, and what Prometheus has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from docs.generate.configuration_pages import NOTE
from records.metric import Metric, keys_in
from records.metrics import METRICS, OLD_KEYS
from reporting.live.prometheus import EXPORTED, Exported

DASHBOARD = Path(__file__).resolve().parents[2] / "docker" / "grafana" / "poweropd.json"

INTRODUCTION = f"""{NOTE}
# Metrics

Every step writes a row of `metrics.jsonl`. A share for which a comparison holds is named `frac_` and the
comparison (`reward/frac_abs_gt_0.01`); any other share of a whole ends in `_frac`. Where a key has a part in
braces, `{{role}}` is `rollout`, `teacher`, `teacher-NAME`, `reference` or `learner`. TensorBoard and Weights &
Biases show every key; [Watching a run](../dashboards.md) says how to get at the other places.

"""

PROMETHEUS = """
## Prometheus

What a run exports, named `ray_poweropd_...`, with the label `run` and those given here.

"""


def metric_page() -> str:
    """The whole page."""
    panels = panels_of_metrics()
    keys = ["| key | unit | meaning | shows in |", "|---|---|---|---|"]
    keys += [_line(f"`{m.key}`", m.unit, _meaning(m), ", ".join(places(m, panels))) for m in METRICS]
    exported = ["| name | kind | labels | meaning | Grafana |", "|---|---|---|---|---|"]
    exported += [
        _line(f"`{e.name}`", e.kind, ", ".join(f"`{tag}`" for tag in e.tags), e.text, ", ".join(panels[e.name]))
        for e in EXPORTED
    ]
    return INTRODUCTION + "\n".join(keys) + f"\n\n{_old_keys()}\n" + PROMETHEUS + "\n".join(exported) + "\n"


def panels_of_metrics() -> dict[str, list[str]]:
    """Titles of the panels of the Grafana dashboard that query each metric."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    queries = {panel["title"]: " ".join(target["expr"] for target in panel.get("targets", [])) for panel in panels}
    return {each.name: [title for title, query in queries.items() if _asks_for(query, each)] for each in EXPORTED}


def _asks_for(query: str, exported: Exported) -> bool:
    return re.search(rf"ray_{exported.full_name}(_bucket)?{{", query) is not None


def places(metric: Metric, panels: dict[str, list[str]]) -> Iterator[str]:
    """Where a metric shows, besides TensorBoard and Weights & Biases."""
    if any(metric.matches(key) for each in METRICS for key in keys_in(each.line)):
        yield "step line"
    has_own_place = metric.status not in ("", "metrics")
    if has_own_place or any(metric.matches(key) for each in METRICS for key in keys_in(each.live)):
        yield "live view"
    if metric.status:
        yield f"`status` ({metric.status})"
    if metric.report:
        yield f'report "{metric.report}"'
    if metric.prometheus:
        yield f"Prometheus `{metric.prometheus}`"
        yield 'Grafana "' + '", "'.join(panels[metric.prometheus]) + '"'


def _meaning(metric: Metric) -> str:
    members = [f"`{name}`: {text}" for name, text in metric.members.items() if text]
    when = [f"Only {metric.when}."] if metric.when else []
    return "<br>".join([" ".join([metric.text, *when]), *members])


def _old_keys() -> str:
    renamed = ", ".join(f"`{old}` (now `{new}`)" for old, new in OLD_KEYS.items())
    return f"Rows of earlier versions are read too: {renamed}."


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
