"""Nodes of a run with real engines are killed with all that runs on them, and come back: nothing is lost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from records.files import read_rows
from records.run_folder import RunFolder
from settings.exit_codes import DRAINED
from tests.integration.chaos_run import check_ledger, check_report
from tests.integration.namespaces import ROOT, NodeOptions, until
from tests.integration.network import RayNetwork, network
from tests.integration.scaled_run import AHEAD, BATCH, STALENESS

pytestmark = [pytest.mark.timeout(1500), pytest.mark.isolated, pytest.mark.slow, pytest.mark.chaos]

NODES = {
    "head": NodeOptions(num_cpus=1),
    "rollout": NodeOptions(num_cpus=1, custom={"rollout": 1}),
    "others": NodeOptions(num_cpus=1, custom={"teacher": 1, "learner": 1}),
}
LAUNCH = ["env", f"--chdir={ROOT}", sys.executable, "launch.py"]
"""A program on another machine starts in its root folder."""


def train_line(path: Path, address: str) -> list[str]:
    """A run whose driver is on the head, and whose workers are on the other nodes."""
    values = {
        **{"runs_path": path, "run_name": "nodes", "cluster.address": address, "evaluation.data_path": "null"},
        **{"data.train_path": path / "data" / "train.jsonl", "checkpoint.every_steps": 5, "max_steps": 20000},
        **{"batch_size": BATCH, "max_staleness": STALENESS, "batches_ahead": AHEAD},
        **{f"{role}.model_path": ROOT / f"examples/arithmetic/models/{role}" for role in ("student", "teacher")},
        **{f"{role}.resources.custom.{role}": 1 for role in ("rollout", "teacher", "learner")},
    }
    options = [f"--{key}={value}" for key, value in values.items()]
    return [*LAUNCH, "train", "--config", "configs/demo.yaml", *options]


def test_five_kills_of_nodes_with_all_their_workers_lose_nothing(tmp_path: Path) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    folder = RunFolder(tmp_path / "nodes")
    with network(tmp_path, list(NODES)) as machines:
        ray = RayNetwork(tmp_path, machines)
        for name, options in NODES.items():
            ray.start(name, options)
        process = ray.run("head", train_line(tmp_path, ray.address), tmp_path / "train.log")
        try:
            until(lambda: len(folder.valid_metrics()) >= 8, "the eighth step", process)
            options = ["--every=45s", "--duration=226s", "--kill=node", "--seed=1", "--json", "--log-level=info"]
            line = [*LAUNCH, "chaos", "--run=nodes", f"--runs-path={tmp_path}", *options]
            log = tmp_path / "chaos.log"
            assert ray.run("head", line, log).wait(1000) == 0, log.read_text()
            [driver] = [p for p in machines["head"].processes("launch.py train") if p.name() != "nsenter"]
            driver.send_signal(signal.SIGTERM)
            assert process.wait(120) == DRAINED
        finally:
            for log in tmp_path.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-5000:]}")
    check_report(json.loads((folder.path / "chaos.json").read_text()), {"node": 5})
    hit = {worker for row in read_rows(folder.path / "chaos.jsonl") for worker in row["workers"]}
    assert hit == {"rollout-0", "teacher-0", "learner-0"}, "each node was killed at least once"
    check_ledger(folder)
