"""The table of metrics: what runs write is in it, and what it says of the places that show a metric is true."""

import json
import re
from pathlib import Path
from typing import Any

from commands.plan.run import simulate
from controller.slots import Slots
from controller.status import progress_status
from docs.generate.metric_page import panels_of_metrics, places
from learner.diagnostics import step_diagnostics
from learner.metrics import step_metrics
from records.files import append_row
from records.metrics import METRICS, OLD_KEYS, declared, required_keys
from records.run_folder import RunFolder
from reporting.live.monitor import Monitor
from reporting.live.prometheus import samples_of_row
from reporting.live.terminal import step_line
from reporting.page.curves import learning_figures, time_figures
from reporting.page.run_data import RunData, read_run
from tests.unit.metric_rows import metrics_row
from tests.unit.run_status import running_status
from tests.unit.synthetic_run import write_run
from tests.unit.test_learner_diagnostics import ALONE, step_tokens
from tests.unit.test_live_view import rendered
from tests.unit.test_simulation_run import BALANCED, run_config

WRITTEN_BY_A_RANK = {"lr", "grad_norm"}


def test_a_step_writes_what_is_declared_and_nothing_else() -> None:
    tokens = step_tokens([[1.0, -1.0, 0.5]])
    learned = step_metrics(tokens, importance_cap=2.0, ranks=ALONE, has_divergence=True, has_top_k=True)
    learned |= step_diagnostics(tokens, ranks=ALONE)
    for row in simulate(run_config(max_steps=2), BALANCED):
        keys = row.keys() | learned.keys() | WRITTEN_BY_A_RANK
        assert [key for key in keys if declared(key) is None] == []
        assert set(required_keys()) - keys == set()


def test_a_name_says_whether_it_is_a_share_and_seconds_end_in_s() -> None:
    is_share = re.compile(r"(.*_|.*/)?frac_(abs_)?(gt|lt|eq)_-?[\d.]+|.*_frac")
    for metric in METRICS:
        assert (metric.unit == "share") == bool(is_share.fullmatch(metric.key)), metric.key
        assert (metric.unit == "s") == metric.key.endswith("_s"), metric.key
        assert metric.text.endswith("."), metric.key
        if metric.prometheus:
            assert metric.prometheus.endswith("_frac") == metric.unit.startswith("share"), metric.key


def test_every_key_has_one_declaration() -> None:
    for key in [*required_keys(), "kl/reverse/teacher-code", "queue/teacher-code", "wait/reference_s"]:
        assert len([metric for metric in METRICS if metric.matches(key)]) == 1, key
    assert declared("reward/late_mean") is declared("wait/cook_s") is None


def test_rows_of_earlier_versions_are_read_under_the_names_of_this_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    append_row(folder.metrics, {"step": 1, "loss": 0.5, **dict.fromkeys(OLD_KEYS, 0.25)})
    assert folder.metric_rows() == [{"step": 1, "loss": 0.5, **dict.fromkeys(OLD_KEYS.values(), 0.25)}]
    assert all(declared(key) for key in OLD_KEYS.values())
    assert not any(declared(key) for key in OLD_KEYS)


IDENTITY = {"step", "time_s", "time/step_s"}
"""What a row is of, and how long that took: means are weighted with it."""

STATUS_PARTS = ("metrics", "rates", "staleness", "waits", "flow")


def test_a_metric_shows_where_its_page_says_and_nowhere_else(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "first", steps=2))
    row = metrics_row(divergence__mean=0.5, grad_norm__log_ratio=3.0, prompts_given_up=1, staleness__lag_1=50)
    before = shown(row, run)
    panels = panels_of_metrics()
    for metric in METRICS:
        keys = {key for key in row if metric.matches(key)} - IDENTITY
        if keys:
            after = shown(row | {key: 3 * row[key] + 1 for key in keys}, run)
            changed = {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}
            assert changed == {place for place in places(metric, panels) if "Grafana" not in place}, metric.key


def shown(row: dict[str, Any], run: RunData) -> dict[str, str]:
    """Everything that the places show of a row but the advice, by the page's names of the places."""
    config = run_config()
    monitor = Monitor(config, clock=lambda: 1010.0)
    monitor.step(row)
    status = progress_status(Slots(batch_size=4, max_steps=9, max_staleness=2, batches_ahead=1), [row])
    status |= monitor.status({}, is_running=True) | running_status_of_pools() | {"advice": None}
    run.rows[:] = [row, row | {"step": 2}]
    found = {"step line": step_line(row, 10), "live view": "\n".join(rendered(status, 250))}
    found |= {f"`status` ({part})": json.dumps(status[part]) for part in STATUS_PARTS}
    for sample in samples_of_row({key: value for key, value in row.items() if key != "step"}):
        place = f"Prometheus `{sample.name}`"
        found[place] = found.get(place, "") + repr(sample)
    found.pop("Prometheus `step_seconds`", None)
    figures = [*learning_figures([run]), *time_figures([run])]
    return found | {f'report "{figure.title}"': json.dumps(figure.spec()) for figure in figures}


def running_status_of_pools() -> dict[str, Any]:
    """What the live view needs besides."""
    return {key: running_status()[key] for key in ("run", "state", "pools", "queues")}
