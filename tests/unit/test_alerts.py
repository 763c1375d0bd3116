"""Alert rules and scrape configurations name only what there is, fire when they should, and say what to do."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from reporting.live.prometheus import EXPORTED
from tests.unit.promql import labels_of, metrics_of
from tests.unit.ray_metrics import GPU_METRICS, RAY_LABELS, RAY_METRICS
from tests.unit.validators import ROOT, run, validator

FOLDER = ROOT / "docker" / "prometheus"
RULES = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
SCRAPES = ["prometheus.yml", "kubernetes.yml"]
ALERTS: list[dict[str, Any]] = [rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]]
SCENARIOS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

SUFFIXES = {"gauge": ("",), "counter": ("",), "histogram": ("_bucket", "_sum", "_count")}
OURS = {f"ray_{metric.full_name}{suffix}": metric for metric in EXPORTED for suffix in SUFFIXES[metric.kind]}
OF_PROMETHEUS = {"up"}
KNOWN = OURS.keys() | RAY_METRICS | GPU_METRICS | OF_PROMETHEUS


def name_of(alert: dict[str, Any]) -> str:
    """Of an alert or a scenario, for the names of tests."""
    return alert.get("alert") or alert["name"]


def unknown_metrics(rules: str) -> set[str]:
    """Metrics that rules name and that nobody exports."""
    named = [metrics_of(rule["expr"]) for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]]
    assert all(named), "an expression without a metric"
    return set().union(*named) - KNOWN


def test_alerts_name_only_metrics_that_the_run_or_ray_exports() -> None:
    assert unknown_metrics(RULES) == set()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ray_poweropd_workers_wanted", "ray_poweropd_workers_wantd"),
        ("ray_poweropd_usual_step_seconds", "poweropd_usual_step_seconds"),
        ("ray_poweropd_step)", "ray_poweropd_steps)"),
        ('up{job="ray"}', 'ups{job="ray"}'),
    ],
)
def test_a_misspelt_metric_is_found(right: str, wrong: str) -> None:
    assert right in RULES
    (found,) = unknown_metrics(RULES.replace(right, wrong))
    assert wrong.startswith(found)


@pytest.mark.parametrize("alert", ALERTS, ids=name_of)
def test_labels_of_an_alert_are_those_of_its_metrics(alert: dict[str, Any]) -> None:
    named = metrics_of(alert["expr"])
    allowed = {"run"} | {tag for name in named & OURS.keys() for tag in OURS[name].tags}
    allowed |= RAY_LABELS if named - OURS.keys() else set()
    allowed |= {"job", "instance"} if "up" in named else set()
    assert labels_of(alert["expr"]) <= allowed
    texts = " ".join(alert["annotations"].values())
    shown = set(re.findall(r"\$labels\.(\w+)", texts))
    assert shown <= allowed
    groupings = {frozenset(re.findall(r"\w+", each)) for each in re.findall(r"by \(([^)]*)\)", alert["expr"])}
    assert not groupings or any(shown <= grouping for grouping in groupings)


@pytest.mark.parametrize("alert", ALERTS, ids=name_of)
def test_an_alert_says_how_bad_it_is_and_which_section_of_the_runbook_helps(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert not alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["description"].endswith(".")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert (ROOT / page).is_file()
    assert f"`{alert['alert']}`" in sections(RUNBOOK)[anchor]


def test_alerts_have_names_of_their_own_and_the_runbook_names_no_other() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(names) == len(set(names))
    assert set(re.findall(r"`((?:Poweropd|Ray)[A-Z]\w+)`", RUNBOOK)) - {"RayCluster", "RayJob"} <= set(names)


@pytest.mark.parametrize("alert", ALERTS, ids=name_of)
def test_every_alert_has_a_scenario_with_a_series_that_fires_and_one_that_does_not(alert: dict[str, Any]) -> None:
    scenario = next(each for each in SCENARIOS if each["name"] == alert["alert"])
    series = " ".join(each["series"] for each in scenario["input_series"])
    assert '"good"' in series
    expected = [sample["labels"] for test in scenario["promql_expr_test"] for sample in test["exp_samples"]]
    assert any(alert["alert"] in labels for labels in expected)
    assert not any('"good"' in labels for labels in expected)
    assert any(not test["exp_samples"] for test in scenario["promql_expr_test"]) or len(expected) > 1


def test_alerts_fire_when_they_should_and_at_no_other_time() -> None:
    run(validator("promtool"), "test", "rules", str(FOLDER / "alerts_test.yml"))


def test_a_rule_that_is_changed_fails_its_scenario(tmp_path: Path) -> None:
    assert "> clamp_min(10" in RULES
    (tmp_path / "alerts.yml").write_text(RULES.replace("> clamp_min(10", "> clamp_min(100"), encoding="utf-8")
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        run(validator("promtool"), "test", "rules", str(tmp_path / "alerts_test.yml"))


@pytest.mark.parametrize("name", SCRAPES)
def test_scrape_configurations_are_valid_load_the_rules_and_give_the_job_that_alerts_ask_for(name: str) -> None:
    done = run(validator("promtool"), "check", "config", str(FOLDER / name))
    assert f"{len(ALERTS)} rules found" in done
    config = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["ray"]
    assert set(re.findall(r'job="(\w+)"', RULES)) == {"ray"}


def sections(page: str) -> dict[str, str]:
    """The text of every section of a page by the anchor of its heading."""
    parts = re.split(r"^#+ (.+)$", page, flags=re.MULTILINE)
    titles, texts = parts[1::2], parts[2::2]
    return {
        re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-"): x for t, x in zip(titles, texts, strict=True)
    }
