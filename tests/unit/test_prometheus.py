"""The table of Prometheus metrics, and the Grafana dashboard that shows each of them."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs.generate import metric_page
from records.files import space
from records.run_folder import RunFolder
from reporting.live.boards import DiskWatch, written_folders
from reporting.live.prometheus import (
    EXPORTED,
    HeldGauges,
    Sample,
    samples_of_evaluation,
    samples_of_event,
    samples_of_row,
    samples_of_status,
)
from settings.run import RunConfig
from tests.unit.metric_rows import metrics_row
from tests.unit.promql import labels_of, metrics_of
from tests.unit.run_status import running_status, starting_status

DASHBOARD: dict[str, Any] = json.loads(metric_page.DASHBOARD.read_text(encoding="utf-8"))
WIDTH = 24
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {
        re.sub("_bucket$", "", name) for text in EXPRESSIONS for name in re.findall(r"ray_(poweropd_\w+)", text)
    }
    assert shown == {metric.full_name for metric in EXPORTED}
    assert all('run=~"$run"' in text for text in EXPRESSIONS)


def test_queries_and_legends_name_only_tags_that_the_metrics_have() -> None:
    tags = {"ray_" + metric.full_name: {"run", *metric.tags} for metric in EXPORTED}
    for target in [target for panel in PANELS for target in panel.get("targets", [])]:
        names = {re.sub("_bucket$", "", name) for name in metrics_of(target["expr"])}
        grouped_by = labels_of(re.sub(r"{.*?}", "", target["expr"])) - {"le"}
        used = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) | grouped_by
        assert all(used <= tags[name] for name in names), target


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
    assert (source["type"], run["query"]["query"]) == ("datasource", "label_values(ray_poweropd_step, run)")
    assert {panel["datasource"]["uid"] for panel in PANELS if panel["type"] != "row"} == {"${datasource}"}


def test_names_are_unique_and_counters_end_as_prometheus_wants() -> None:
    names = [metric.name for metric in EXPORTED]
    assert len(names) == len(set(names))
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in EXPORTED)


def test_the_values_of_a_metrics_row_are_taken_by_key_and_by_role() -> None:
    row = metrics_row(3, unknown=1.0, tokens_trained=64, backpressure__teacher_s=0.25) | {
        "throughput/teacher-code": 20
    }
    found = [*samples_of_row(row)]
    assert Sample("throughput_tokens_per_second", 20.0, {"role": "teacher-code"}) in found
    assert Sample("backpressure_seconds_total", 0.25, {"role": "teacher"}) in found
    assert Sample("step_seconds", 2.0, {}) in found
    assert Sample("tokens_trained_total", 64.0, {}) in found
    assert not any(sample.name == "unknown" for sample in found)


def test_the_status_tells_of_workers_progress_bounds_checkpoint_and_disk() -> None:
    status = running_status() | {"disk": {"run": {"free": 5, "size": 50}, "checkpoints": {"free": 7, "size": 70}}}
    found = {(sample.name, *sample.tags.values()): sample.value for sample in samples_of_status(status)}
    assert found["workers", "rollout", "healthy"] == 2
    assert found["workers", "rollout", "restarting"] == 1
    assert found["workers", "rollout", "dead"] == 0
    assert found["workers_wanted", "rollout"] == 3
    assert (found["seconds_left",], found["usual_step_seconds",], found["staleness_bound",]) == (402, 2.5, 4)
    assert (found["started_timestamp_seconds",], found["progress_timestamp_seconds",]) == (1000, 1123)
    assert (found["checkpoint_step",], found["checkpoint_every_steps",]) == (20, 20)
    assert (found["disk_free_bytes", "checkpoints"], found["disk_size_bytes", "run"]) == (7, 50)


def test_what_is_not_known_before_the_first_step_is_not_told() -> None:
    names = {sample.name for sample in samples_of_status(starting_status())}
    assert {"started_timestamp_seconds", "progress_timestamp_seconds", "checkpoint_step", "workers"} <= names
    assert not {"usual_step_seconds", "seconds_left", "disk_free_bytes", "staleness_bound"} & names


@pytest.mark.parametrize(
    ("event", "samples"),
    [
        ({"event": "worker_died", "worker": "teacher-code-1"}, [("deaths_total", 1.0, "teacher-code")]),
        ({"event": "learner_restarted"}, [("restarts_total", 1.0, "learner")]),
        ({"event": "worker_given_up", "worker": "teacher-0"}, [("given_up_total", 1.0, "teacher")]),
        ({"event": "checkpoint", "step": 5, "bytes": 12}, [("checkpoint_bytes", 12.0)]),
        ({"event": "checkpoint_failed"}, [("checkpoint_failures_total", 1.0)]),
        ({"event": "checkpoint_damaged"}, [("checkpoints_damaged_total", 1.0)]),
        ({"event": "weights_loaded", "worker": "rollout-0"}, []),
    ],
    ids=lambda each: each["event"] if isinstance(each, dict) else "",
)
def test_deaths_restarts_and_checkpoints_are_counted(event: dict[str, Any], samples: list[Any]) -> None:
    assert [(each.name, each.value, *each.tags.values()) for each in samples_of_event(event)] == samples


def test_the_newest_value_of_every_gauge_is_given_again_before_ray_forgets_it() -> None:
    held = HeldGauges()
    held.note(Sample("step", 3.0, {}))
    held.note(Sample("busy_frac", 0.5, {"role": "teacher"}))
    held.note(Sample("busy_frac", 0.7, {"role": "rollout"}))
    held.note(Sample("step", 4.0, {}))
    newest = [("step", 4.0), ("busy_frac", 0.5), ("busy_frac", 0.7)]
    assert [(each.name, each.value) for each in held.due(100.0)] == newest
    assert held.due(101.0) == []
    assert len(held.due(105.0)) == 3


def test_a_disk_that_cannot_be_read_has_no_reading_until_it_can(tmp_path: Path) -> None:
    answers = iter([{"free": 5, "size": 50}, None, {"free": 3, "size": 50}])

    def read(path: Path) -> dict[str, int]:
        assert path == tmp_path
        if (answer := next(answers)) is None:
            raise OSError("stale file handle")
        return answer

    watch = DiskWatch({"run": tmp_path}, read=read)
    found = [asyncio.run(watch.read()) or {**watch.spaces} for _ in range(3)]
    assert found == [{"run": {"free": 5, "size": 50}}, {}, {"run": {"free": 3, "size": 50}}]


def test_the_free_space_of_a_folder_that_is_not_there_yet_is_that_of_its_disk(tmp_path: Path) -> None:
    assert space(tmp_path / "not" / "yet")["size"] == shutil.disk_usage(tmp_path).total


def test_checkpoints_elsewhere_are_watched_too(tmp_path: Path) -> None:
    models = {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}}
    folder = RunFolder(tmp_path)

    def watched(path: str | None) -> dict[str, Path]:
        config = RunConfig.model_validate({**models, "max_steps": 2, "checkpoint": {"path": path}})
        return written_folders(config, folder)

    assert watched(None) == {"run": tmp_path}
    assert watched("/elsewhere") == {"run": tmp_path, "checkpoints": Path("/elsewhere")}
    assert watched("file:///elsewhere") == {"run": tmp_path}


def test_accuracies_are_by_benchmark_and_model() -> None:
    row = {"model": "student_after", "benchmark": "gsm8k", "avg_at_k": 0.5, "pass_at_k": 0.75}
    tags = {"benchmark": "gsm8k", "model": "student"}
    assert [*samples_of_evaluation(row)] == [
        Sample("evaluation_accuracy", 0.5, tags),
        Sample("evaluation_pass_at_k", 0.75, tags),
    ]
