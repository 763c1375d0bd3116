"""A real Prometheus with the files of this project watches a real run, and notices a frozen driver."""

import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from settings.exit_codes import DRAINED
from tests.integration.namespaces import ROOT, NodeOptions, ray_nodes, until
from tests.unit.validators import validator

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]

SERVER = "http://127.0.0.1:9090"
FOLDER = ROOT / "docker" / "prometheus"
SHORTER = {
    **{"scrape_interval: 10s": "scrape_interval: 2s", "evaluation_interval: 15s": "evaluation_interval: 2s"},
    **{"refresh_interval: 10s": "refresh_interval: 2s", "seconds[6h])), 900)": "seconds[6h])), 20)"},
    **{"for: 1m": "for: 4s", "for: 3m": "for: 4s"},
}
"""What makes a quarter of an hour 20 s."""


def asked(path: str, **parameters: str) -> Any:
    """An answer of the server."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{SERVER}/api/v1/{path}{query}", timeout=10) as answer:
        return json.loads(answer.read())["data"]


def values(query: str) -> list[float]:
    """The values of a query."""
    return [float(each["value"][1]) for each in asked("query", query=query)["result"]]


def firing() -> set[str]:
    """Alerts on the run that fire."""
    alerts = asked("alerts")["alerts"]
    return {
        each["labels"]["alertname"]
        for each in alerts
        if each["state"] == "firing" and each["labels"].get("run") == "watched"
    }


@contextmanager
def prometheus(folder: Path, shorter: Mapping[str, str]) -> Iterator[None]:
    """The server, with the project's files and shorter times."""
    for name in ("prometheus.yml", "alerts.yml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        for long, short in shorter.items():
            text = text.replace(long, short)
        (folder / name).write_text(text, encoding="utf-8")
    line = [validator("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    line += [f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:9090"]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(is_up, "Prometheus", server)
        yield
    finally:
        server.terminate()
        server.wait(30)


def is_up() -> bool:
    """True once the server answers."""
    try:
        return bool(asked("rules")["groups"])
    except OSError:
        return False


def started_run(folder: Path) -> subprocess.Popen[Any]:
    """A run of the demo's models that would take hours."""
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", folder / "data"], check=True, timeout=60)
    settings = {
        **{"runs_path": folder, "run_name": "watched", "data.train_path": folder / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "checkpoint.every_steps": 5, "max_steps": 20000, "batch_size": 8},
        "cluster.address": "auto",
    }
    line = [sys.executable, "launch.py", "train", "--config=configs/demo.yaml"]
    with (folder / "run.log").open("w") as log:
        return subprocess.Popen(
            [*line, *(f"--{key}={value}" for key, value in settings.items())],
            **{"cwd": ROOT, "stdout": log, "stderr": subprocess.STDOUT},
        )


def test_a_frozen_driver_is_noticed_and_a_drained_one_is_not_missed(tmp_path: Path) -> None:
    validator("prometheus")
    texts = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("prometheus.yml", "alerts.yml"))
    assert [long for long in SHORTER if long not in texts] == []
    with ray_nodes(tmp_path, {"head": NodeOptions(num_cpus=4)}, with_jobs=True), prometheus(tmp_path, SHORTER):
        run = started_run(tmp_path)
        try:
            until(lambda: max(values('ray_poweropd_step{run="watched"}'), default=0) >= 6, "six steps", run)
            until(lambda: values('ray_poweropd_checkpoint_step{run="watched"} > 0'), "a checkpoint", run)
            assert values('ray_poweropd_workers_wanted{run="watched", role="rollout"}') == [1.0]
            assert values('ray_poweropd_disk_free_bytes{run="watched", folder="run"}')[0] > 0
            rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
            assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
            assert {rule["health"] for rule in rules} == {"ok"}
            assert firing() == set()

            run.send_signal(signal.SIGSTOP)
            until(lambda: firing() >= {"PoweropdNoProgress", "PoweropdRunGone"}, "the alerts", run, timeout_s=120)
            run.send_signal(signal.SIGCONT)
            until(lambda: not firing(), "the end of the alerts", run, timeout_s=120)

            run.send_signal(signal.SIGTERM)
            assert run.wait(120) == DRAINED
            since_end = 'time() - last_over_time(ray_poweropd_ended_timestamp_seconds{run="watched"}[5m])'
            until(lambda: values(f"{since_end} > 60"), "a minute after the end, which was told", timeout_s=120)
            assert values('ray_poweropd_step{run="watched"}') == []
            assert firing() == set()
        finally:
            run.kill()
            run.wait(30)
