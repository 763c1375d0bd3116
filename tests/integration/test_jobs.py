"""Runs as Ray jobs on a cluster with token authentication: submitted, stopped two ways, continued."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.command_line import DRAINED, FINISHED
from cluster.jsonl import read_rows
from cluster.run_folder import RunFolder
from tests.integration.namespaces import HEAD, ROOT, NodeOptions, ray_nodes, until

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]

JOBS = f"http://{HEAD}:8265"
MAX_UPLOAD_BYTES = 20 * 2**20


def ray_job(*arguments: str) -> str:
    """The output of `ray job ...`, which must succeed."""
    done = subprocess.run(["ray", "job", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(name: str, runs_path: Path) -> None:
    """Submit this repository and a run of the demo's models that would take hours, or goes on if it is there."""
    settings = {
        **{"runs_path": runs_path, "run_name": "job", "data.train_path": runs_path / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "checkpoint.every_steps": 0, "max_steps": 20000, "batch_size": 8},
    }
    runtime = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
    line = ["--no-wait", f"--submission-id={name}", f"--runtime-env-json={json.dumps(runtime)}"]
    command = [
        "python",
        "launch.py",
        "train",
        "--config=configs/demo.yaml",
        "--cluster.address=auto",
        "--resume=auto",
        "--retries=2",
    ]
    ray_job("submit", *line, "--working-dir=.", "--", *command, *(f"--{k}={v}" for k, v in settings.items()))


def asked(path: str, token: str | None) -> tuple[int, Any]:
    """Status and answer of the jobs API."""
    request = urllib.request.Request(JOBS + path)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def test_a_job_needs_the_token_is_stopped_with_a_checkpoint_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", JOBS)
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    folder = RunFolder(tmp_path / "job")
    with ray_nodes(tmp_path, {"head": NodeOptions(num_cpus=4)}, with_jobs=True):
        token = (tmp_path / "token").read_text()

        def job(name: str) -> dict[str, Any]:
            return asked(f"/api/jobs/{name}", token)[1]

        def steps_of(name: str, at_least: int) -> bool:
            status = job(name)
            assert status["status"] in ("PENDING", "RUNNING"), ray_job("logs", name)
            return len(read_rows(folder.metrics)) >= at_least

        until(lambda: asked("/api/jobs/", token)[0] == 200, "the jobs API")
        assert asked("/api/jobs/", None)[0] == 401
        assert asked("/api/jobs/", "0" * 64)[0] == 403

        submit("first", tmp_path)
        until(lambda: steps_of("first", 2), "two steps of the job")
        uploads = [*Path("/tmp/ray").glob("session_latest/runtime_resources/working_dir_files/*")]
        uploaded = [path for path in uploads if path.is_dir()]
        assert len(uploaded) == 1
        size = sum(path.stat().st_size for path in uploaded[0].rglob("*") if path.is_file())
        assert size < MAX_UPLOAD_BYTES
        assert not {".git", ".venv", "runs"} & {path.name for path in uploaded[0].iterdir()}

        stop = [sys.executable, "launch.py", "stop", "--run=job", f"--runs-path={tmp_path}"]
        monkeypatch.delenv("RAY_ADDRESS")
        done = subprocess.run(stop, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == FINISHED, done.stderr
        assert done.stdout.startswith("job finishes the step in progress, saves it and ends with exit code 3")
        monkeypatch.setenv("RAY_ADDRESS", JOBS)
        until(lambda: job("first")["status"] == "FAILED", "the end of the first job")
        assert job("first")["driver_exit_code"] == DRAINED
        logs = ray_job("logs", "first")
        first_end = len(read_rows(folder.metrics))
        assert f"drained at step {first_end}; continue with --resume" in " ".join(logs.split())
        assert [path.name for path in folder.checkpoints.iterdir()] == [f"step_{first_end}"]

        submit("second", tmp_path)
        until(lambda: steps_of("second", first_end + 2), "two steps of the job that goes on")
        ray_job("stop", "second")
        assert job("second")["status"] == "STOPPED"
        last = len(read_rows(folder.metrics))
        assert (folder.checkpoints / f"step_{last}").is_dir()
        assert re.search("drained at step", ray_job("logs", "second"))
        assert [row["step"] for row in read_rows(folder.metrics)] == list(range(1, last + 1))
