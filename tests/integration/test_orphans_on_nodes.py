"""A driver on a cluster is killed: its workers end, and those that cannot are ended when the run is resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.command_line import FINISHED
from cluster.jsonl import read_rows
from cluster.run_folder import RunFolder, valid_ledger
from tests.integration.namespaces import ROOT, NodeOptions, ray_nodes, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.isolated, pytest.mark.slow]

STEPS = 60
NODES = {
    "head": NodeOptions(num_cpus=1, custom={"learner": 1, "teacher": 1}),
    "rollout": NodeOptions(num_cpus=1, custom={"rollout": 2}),
}


def named(name: str) -> list[psutil.Process]:
    """Processes of this name; a test in namespaces sees only its own."""
    return [each for each in psutil.process_iter() if each.name().startswith(name)]


def test_workers_of_a_killed_driver_end_and_a_frozen_one_is_ended_on_its_node_at_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "simulated")
    with ray_nodes(tmp_path, NODES) as address:
        line = [sys.executable, "-m", "tests.integration.simulated_driver", str(tmp_path), address, str(STEPS)]
        driver = subprocess.Popen(line, cwd=ROOT)
        until(lambda: len(valid_ledger(folder.ledger)) >= 5, "five steps", driver)
        workers = named("ray::RolloutWorker") + named("ray::TeacherWorker") + named("ray::SimulatedLearner")
        assert len(workers) == 4
        frozen = workers.pop(0)
        frozen.send_signal(signal.SIGSTOP)
        driver.kill()
        driver.wait()
        killed = time.monotonic()
        assert psutil.wait_procs(workers, timeout=30)[1] == []
        print(f"the other workers ended within {time.monotonic() - killed:.1f} s")
        gone = psutil.wait_procs([frozen], timeout=15)[0]
        print(f"the frozen worker ended by itself: {bool(gone)}")
        again = subprocess.run(line, cwd=ROOT, timeout=300)
        assert again.returncode == FINISHED
        assert not frozen.is_running()
        ended = [row for row in read_rows(folder.events) if row["event"] == "orphan_ended"]
        if not gone:
            assert [(row["pid"], row["node"]) for row in ended] == [(frozen.pid, "rollout")]
    slots = sorted(int(uid.split("-")[0]) for uids in valid_ledger(folder.ledger).values() for uid in uids)
    assert slots == list(range(STEPS * 8))
