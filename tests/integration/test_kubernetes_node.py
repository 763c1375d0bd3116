"""What the manifests do on a real node of Ray: the question of the probes, and the script of a pod's end."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from commands.submit.rayjob import drain_script
from commands.submit.request import Request
from records.files import read_rows
from records.run_folder import RunFolder
from settings.exit_codes import DRAINED
from tests.integration.namespaces import HEAD, ROOT, NodeOptions, ray_nodes, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.isolated, pytest.mark.slow]

AGENT = f"http://{HEAD}:52401"
"""The dashboard agent of the first node that `ray_nodes` starts."""


def test_probes_need_no_token_and_the_end_of_a_pod_drains_its_run(tmp_path: Path) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    folder = RunFolder(tmp_path / "first")
    settings = {
        **{"runs_path": tmp_path, "run_name": "first", "data.train_path": tmp_path / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "checkpoint.every_steps": 0, "max_steps": 20000, "batch_size": 8},
        "cluster.address": "auto",
    }
    train = [sys.executable, "launch.py", "train", "--config=configs/demo.yaml"]
    train += [f"--{key}={value}" for key, value in settings.items()]
    ends = drain_script(Request("first", (), None, "", (), str(tmp_path), 0, {}, 120.0))
    ends = ends.replace("python /app/launch.py", f"{sys.executable} {ROOT}/launch.py")
    with ray_nodes(tmp_path, {"head": NodeOptions(num_cpus=4)}):
        with urllib.request.urlopen(f"{AGENT}/api/healthz", timeout=30) as answer:
            assert answer.status == 200

        assert subprocess.run(["/bin/bash", "-c", ends], timeout=60).returncode == 0  # there is no run
        with (tmp_path / "train.log").open("w") as log:
            run = subprocess.Popen(train, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        until(lambda: len(read_rows(folder.metrics)) >= 2, "two steps", run)
        done = subprocess.run(["/bin/bash", "-c", ends], cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert (done.returncode, not folder.cluster.exists()) == (0, True), done.stdout + done.stderr
        assert run.wait(60) == DRAINED, (tmp_path / "train.log").read_text()[-2000:]
        last = len(read_rows(folder.metrics))
        assert [path.name for path in folder.checkpoints.iterdir()] == [f"step_{last}"]
