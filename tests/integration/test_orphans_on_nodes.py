"""A driver on a cluster is killed: its workers end, and those that cannot are ended when the run is resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from settings.exit_codes import FINISHED
from tests.integration.namespaces import ROOT, NodeOptions, ray_nodes, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.isolated, pytest.mark.slow]

STEPS = 60
HELPER_S = "1234"
NODES = {
    "head": NodeOptions(num_cpus=1, custom={"learner": 1, "teacher": 1}),
    "rollout": NodeOptions(num_cpus=1, custom={"rollout": 2}),
}


def named(name: str) -> list[psutil.Process]:
    """Processes of this name; a test in namespaces sees only its own."""
    return [each for each in psutil.process_iter() if each.name().startswith(name)]


def test_workers_of_a_killed_driver_end_and_what_they_had_started_is_ended_on_its_node_at_resume(
    tmp_path: Path,
) -> None:
    """Ray ends the workers, even a frozen one, and their children; what is no child of them stays."""
    folder = RunFolder(tmp_path / "simulated")
    with ray_nodes(tmp_path, NODES) as address:
        line = [sys.executable, "-m", "tests.integration.simulated_driver", str(tmp_path), address, str(STEPS)]
        driver = subprocess.Popen([*line, HELPER_S], cwd=ROOT)
        until(lambda: len(valid_ledger(folder.ledger)) >= 5, "five steps", driver)
        workers = named("ray::RolloutWorker") + named("ray::TeacherWorker") + named("ray::SimulatedLearner")
        helpers = [each for each in named("sleep") if HELPER_S in each.cmdline()]
        assert (len(workers), len(helpers)) == (4, 2)
        workers[0].send_signal(signal.SIGSTOP)
        driver.kill()
        driver.wait()
        killed = time.monotonic()
        assert psutil.wait_procs(workers, timeout=30)[1] == []
        print(f"the workers ended within {time.monotonic() - killed:.1f} s")
        assert all(helper.is_running() for helper in helpers)
        assert subprocess.run(line, cwd=ROOT, timeout=300).returncode == FINISHED
        assert not any(helper.is_running() for helper in helpers)
    ended = [
        (row["pid"], row["name"], row["node"]) for row in read_rows(folder.events) if "orphan" in row["event"]
    ]
    assert sorted(ended) == sorted((helper.pid, "sleep", "rollout") for helper in helpers)
    slots = sorted(int(uid.split("-")[0]) for uids in valid_ledger(folder.ledger).values() for uid in uids)
    assert slots == list(range(STEPS * 8))
