"""The demo as a submitted job on a cluster of four node groups, each node a machine with docker/ray_node.sh."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from records.files import read_rows
from records.run_folder import RunFolder
from settings.exit_codes import BAD_INPUT, DRAINED
from tests.integration.chaos_run import check_ledger
from tests.integration.namespaces import ROOT, NodeOptions, until
from tests.integration.node_groups import LAUNCH, SCRIPT, NodeGroups, node_groups
from tests.integration.scaled_run import AHEAD, BATCH, STALENESS

pytestmark = [pytest.mark.timeout(1500), pytest.mark.isolated, pytest.mark.slow]

NODES = {
    "head": NodeOptions(num_cpus=0),
    "learner": NodeOptions(num_cpus=1),
    "teacher": NodeOptions(num_cpus=1),
    "rollout": NodeOptions(num_cpus=1),
}
# A machine without power is found after 15 to 20 s; a busy one has 5 s to answer.
LIMITS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000"}
LIMITS |= {"RAY_health_check_failure_threshold": "4", "OMP_NUM_THREADS": "1"}
OFF_S = 3.0
TINY_CPUS = {f"{role}.resources.num_cpus": 0.1 for role in ("rollout", "teacher", "learner")}


class RunOnGroups:
    """A run of the demo's models that would take hours, submitted from outside of the cluster."""

    def __init__(self, ray: NodeGroups, path: Path, name: str) -> None:
        self.ray, self.path, self.name = ray, path, name
        self.folder = RunFolder(path / name)
        self._followed = path / f"{name}.log"

    def submit(self) -> None:
        """Submit it and follow it; it is the same command when the run is to continue."""
        values = {
            **{"run-name": self.name, "runs-path": self.path, "max_steps": 20000, "batch_size": BATCH},
            **{"max_staleness": STALENESS, "batches_ahead": AHEAD, "checkpoint.every_steps": 5},
            **{"data.train_path": self.path / "data" / "train.jsonl", "evaluation.data_path": "null", **TINY_CPUS},
        }
        options = [f"--{key}={value}" for key, value in values.items()]
        line = ["--config=configs/demo.yaml", "--node-groups", "--follow", *options]
        with self._followed.open("ab") as log:
            self.process = self.ray.outside("submit", *line, stdout=log, stderr=subprocess.STDOUT)

    def launch(self, name: str, command: str, *options: str) -> str:
        """The output of a command about the run, on a machine of the cluster; it must succeed."""
        return self.ray.launch(name, command, f"--run={self.name}", f"--runs-path={self.path}", *options)

    def nodes_of_workers(self) -> dict[str, str]:
        """The node of every worker."""
        status = json.loads(self.launch("learner", "status", "--json"))
        return {w["name"]: w["node"] for pool in status["pools"].values() for w in pool["workers"]}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [row for row in read_rows(self.folder.events) if row["event"] == kind]

    def num_steps(self) -> int:
        """Steps that count."""
        return len(self.folder.valid_metrics())

    def goes_on(self, steps: int, what: str) -> None:
        """Wait for so many further steps."""
        before = self.num_steps()
        until(lambda: self.num_steps() >= before + steps, f"{steps} steps {what}", self.process)

    def until_workers(self, rollout: int, teacher: int) -> None:
        """Wait for a step with so many serving workers."""
        wanted = {"workers/rollout": rollout, "workers/teacher": teacher}
        rows = self.folder.valid_metrics
        until(lambda: rows() and wanted.items() <= rows()[-1].items(), f"workers {wanted}", self.process)

    def lose(self, name: str) -> None:
        """Switch a machine off and on again, and start its node as its supervisor would; its workers come back."""
        workers = {worker for worker, node in self.nodes_of_workers().items() if node == name}
        at = time.time()
        machine = self.ray.nodes[name]
        machine.power_off()
        time.sleep(OFF_S)
        machine.power_on()
        self.ray.start(name, NODES[name])

        def came_back() -> set[str]:
            return {row["worker"] for row in self.events("worker_restarted") if row["time"] > at}

        until(lambda: came_back() == workers, f"{workers} on {name}", self.process)
        lost = {row["worker"] for row in self.events("worker_died") if row["time"] > at}
        assert lost == workers
        print(f"{name} off for {OFF_S:g} s: {sorted(workers)} serve again {time.time() - at:.1f} s after")


@pytest.fixture
def data(tmp_path: Path) -> None:
    """The demo's prompts, on storage that all machines share."""
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)


def check_wrong_token(ray: NodeGroups) -> None:
    """With another token neither a node nor a job nor a command gets in."""
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    node = ray.done("rollout", [SCRIPT, "rollout"], **wrong)
    refused = f"ray_node: the head at {ray.address} does not take the token of this node\n"
    assert (node.returncode, node.stderr) == (BAD_INPUT, refused)
    line = [*LAUNCH, "submit", "--run=any", "--status", f"--address={ray.jobs}"]
    assert ray.done("rollout", line, **wrong).returncode == BAD_INPUT
    line = [*LAUNCH, "scale", "--run=any", f"--address={ray.address}", "--rollout=2"]
    assert ray.done("rollout", line, **wrong).returncode == BAD_INPUT


@pytest.mark.usefixtures("data")
def test_a_submitted_run_has_its_workers_on_their_groups_is_scaled_and_survives_lost_nodes(tmp_path: Path) -> None:
    with node_groups(tmp_path, NODES, **LIMITS) as ray:
        check_wrong_token(ray)
        run = RunOnGroups(ray, tmp_path, "groups")
        run.submit()
        try:
            run.goes_on(3, "of the submitted run")
            groups = {f"{role}-0": role for role in ("learner", "teacher", "rollout")}
            assert run.nodes_of_workers() == groups

            assert "rollout-1" in run.launch("teacher", "scale", "--rollout=2", "--teacher=2")
            run.until_workers(2, 2)
            groups |= {"rollout-1": "rollout", "teacher-1": "teacher"}
            assert run.nodes_of_workers() == groups

            for name in ("rollout", "teacher"):
                run.lose(name)
                run.goes_on(5, f"after the loss of {name}")
            assert run.nodes_of_workers() == groups

            run.launch("teacher", "scale", "--rollout=1", "--teacher=1")
            run.until_workers(1, 1)
            run.goes_on(3, "with the first workers")
            ray.submitted("--run=groups", "--stop", "--grace=120")
            assert run.process.wait(60) == DRAINED
        finally:
            print((tmp_path / "groups.log").read_text()[-6000:])
        check_ledger(run.folder)
        assert {row["worker"]: row["node"] for row in run.events("worker_started")} == groups
        assert not run.events("learner_lost") + run.events("prompt_given_up")
