"""The table of Prometheus metrics, and the Grafana dashboard that shows each of them."""

import json
import re
from typing import Any

from cluster.dashboards.grafana import DASHBOARD_PATH, WIDTH, dashboard_text
from cluster.dashboards.prometheus_table import (
    METRICS,
    Sample,
    samples_of_evaluation,
    samples_of_event,
    samples_of_row,
    samples_of_status,
)
from tests.unit.run_status import running_status

DASHBOARD: dict[str, Any] = json.loads(DASHBOARD_PATH.read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {
        re.sub("_bucket$", "", name) for text in EXPRESSIONS for name in re.findall(r"ray_(poweropd_\w+)", text)
    }
    assert shown == {metric.full_name for metric in METRICS}
    assert all('run=~"$run"' in text for text in EXPRESSIONS)


def test_legends_and_sums_name_only_tags_that_the_metrics_have() -> None:
    tags = {"ray_" + metric.full_name: {"run", *metric.tags} for metric in METRICS}
    for target in [target for panel in PANELS for target in panel.get("targets", [])]:
        names = {re.sub("_bucket$", "", name) for name in re.findall(r"ray_poweropd_\w+", target["expr"])}
        used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for by in re.findall(r"by \(([^)]*)\)", target["expr"]):
            used |= {tag.strip() for tag in by.split(",")} - {"le"}
        assert all(used <= tags[name] for name in names), target


def test_the_file_is_what_the_table_makes() -> None:
    assert DASHBOARD_PATH.read_text(encoding="utf-8") == dashboard_text(), (
        "write it anew: python -m cluster.dashboards.grafana"
    )


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_asks_for_a_data_source_and_a_run() -> None:
    source, run = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert (run["name"], run["query"]["query"]) == ("run", "label_values(ray_poweropd_step, run)")
    used = {panel["datasource"]["uid"] for panel in PANELS if panel["type"] != "row"}
    assert used == {"${datasource}"}


def test_names_are_unique_and_counters_end_as_prometheus_wants() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)
    assert all(len(metric.tags) == 1 for metric in METRICS if metric.key and "*" in metric.key)


def test_the_values_of_a_metrics_row_are_taken_by_key_and_by_role() -> None:
    row = {
        **{"step": 3, "kl/reverse": 0.5, "throughput/rollout": 10.0, "throughput/teacher-code": 20.0},
        **{"backpressure/teacher_s": 0.25, "time/train_s": 1.5, "time/step_s": 2.0, "tokens_trained": 64},
        "unknown": 1.0,
    }
    found = [*samples_of_row(row)]
    assert Sample("step", 3.0, {}) in found
    assert Sample("reverse_kl", 0.5, {}) in found
    assert Sample("throughput_tokens_per_second", 20.0, {"role": "teacher-code"}) in found
    assert Sample("backpressure_seconds_total", 0.25, {"role": "teacher"}) in found
    assert Sample("stage_seconds", 1.5, {"stage": "train"}) in found
    assert Sample("step_seconds", 2.0, {}) in found
    assert Sample("tokens_trained_total", 64.0, {}) in found
    assert not any(sample.name == "unknown" for sample in found)


def test_workers_are_counted_by_role_and_state_and_deaths_by_role() -> None:
    found = [*samples_of_status(running_status())]
    assert Sample("workers", 2.0, {"role": "rollout", "state": "healthy"}) in found
    assert Sample("workers", 1.0, {"role": "rollout", "state": "restarting"}) in found
    assert Sample("workers", 0.0, {"role": "rollout", "state": "dead"}) in found
    assert Sample("seconds_left", 402.0, {}) in found
    died = {"event": "worker_died", "worker": "teacher-code-1"}
    assert [*samples_of_event(died)] == [Sample("deaths_total", 1.0, {"role": "teacher-code"})]
    assert [*samples_of_event({"event": "learner_restarted"})] == [
        Sample("restarts_total", 1.0, {"role": "learner"})
    ]
    assert [*samples_of_event({"event": "weights_loaded", "worker": "rollout-0"})] == []


def test_accuracies_are_by_benchmark_and_model() -> None:
    row = {"model": "student_after", "benchmark": "gsm8k", "avg_at_k": 0.5, "pass_at_k": 0.75}
    tags = {"benchmark": "gsm8k", "model": "student"}
    assert [*samples_of_evaluation(row)] == [
        Sample("evaluation_accuracy", 0.5, tags),
        Sample("evaluation_pass_at_k", 0.75, tags),
    ]
