"""Cables between machines are cut and healed while a simulated run goes on."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.command_line import FAILED, FINISHED
from cluster.jsonl import read_rows
from cluster.run_folder import RunFolder, valid_ledger
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network import RayNetwork, network

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]

STEPS, BATCH = 60, 8
CUT_S = 20.0
NODES = {
    "head": NodeOptions(num_cpus=1, custom={"teacher": 1}),
    "learner": NodeOptions(num_cpus=1, custom={"learner": 1}),
    "a": NodeOptions(num_cpus=1, custom={"rollout": 1}),
    "b": NodeOptions(num_cpus=1, custom={"rollout": 1}),
}
FAST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that is silent for about 6 s counts as dead."""


class NetworkRun:
    """A simulated run whose driver is on the head."""

    def __init__(self, ray: RayNetwork, path: Path) -> None:
        self.ray = ray
        self.path = path
        self.folder = RunFolder(path / "simulated")

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[Any]]:
        """The run while it goes on; it resumes if there is something to resume."""
        log = self.path / "driver.log"
        line = [sys.executable, "-m", "tests.integration.simulated_driver", str(self.path), self.ray.address]
        try:
            yield self.ray.run("head", [*line, str(STEPS)], log)
        finally:
            print(log.read_text()[-4000:])

    def step(self) -> int:
        """The newest step that counts."""
        return max(valid_ledger(self.folder.ledger), default=0)

    def until_step(self, step: int, process: subprocess.Popen[Any]) -> None:
        """Wait while the run goes on."""
        until(lambda: self.step() >= step, f"step {step}", process)

    def check(self) -> None:
        """Every slot was trained exactly once."""
        ledger = valid_ledger(self.folder.ledger)
        assert sorted(ledger) == list(range(1, STEPS + 1))
        uids = [uid for uids in ledger.values() for uid in uids]
        assert sorted(int(uid.split("-")[0]) for uid in uids) == list(range(STEPS * BATCH))


@contextmanager
def network_run(path: Path, **environment: str) -> Iterator[NetworkRun]:
    """Machines with Ray, and a run that was not started yet."""
    with network(path, list(NODES)) as nodes:
        ray = RayNetwork(path, nodes, **environment)
        for name, options in NODES.items():
            ray.start(name, options)
        yield NetworkRun(ray, path)


@pytest.mark.parametrize("limits", [{}, FAST], ids=["default limits", "fast limits"])
def test_a_run_outlives_a_cut_of_a_rollout_workers_node(tmp_path: Path, limits: dict[str, str]) -> None:
    """By Ray's defaults the node lives on; where it counts as dead its work is done elsewhere."""
    with network_run(tmp_path, **limits) as run, run.started() as process:
        run.until_step(5, process)
        run.ray.nodes["a"].cut()
        time.sleep(CUT_S)
        run.ray.nodes["a"].heal()
        healed, at = time.monotonic(), run.step()
        run.until_step(at + 5, process)
        print(f"five steps took {time.monotonic() - healed:.1f} s after the cable was back")
        assert process.wait(200) == FINISHED
    run.check()
    died = {row["worker"] for row in read_rows(run.folder.events) if row["event"] == "worker_died"}
    assert died <= {"rollout-0", "rollout-1"}


def test_a_cut_of_the_learners_node_ends_the_run_and_it_is_resumed(tmp_path: Path) -> None:
    with network_run(tmp_path) as run:
        with run.started() as process:
            run.until_step(15, process)
            run.ray.nodes["learner"].cut()
            cut = time.monotonic()
            assert process.wait(200) == FAILED
            print(f"the run ended {time.monotonic() - cut:.1f} s after the cut")
            run.ray.nodes["learner"].heal()
        with run.started() as process:
            assert process.wait(300) == FINISHED
        run.check()
