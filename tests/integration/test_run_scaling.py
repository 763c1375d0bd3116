"""A run from the command line with real engines, scaled up and down from other processes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.jsonl import read_rows
from cluster.run_folder import valid_ledger

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, STALENESS = 250, 8, 2

pytestmark = pytest.mark.timeout(600)


def launch(command: str, runs_path: Path, *options: str) -> str:
    """The output of `scale` or `status`, which must succeed."""
    line = [sys.executable, "launch.py", command, "--run", "scaled", "--runs-path", str(runs_path), *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(process: subprocess.Popen[Any], condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition while the run goes on."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.2)


def workers_of(events: Path, kind: str, reason: str) -> set[str]:
    """Names of the workers of the events of one kind."""
    return {row["worker"] for row in read_rows(events) if row["event"] == kind and row["reason"] == reason}


def loaders_of(events: Path) -> set[str]:
    """Names of the workers that have loaded weights."""
    return {row["worker"] for row in read_rows(events) if row["event"] == "weights_loaded"}


def test_rollout_and_teacher_grow_to_two_and_shrink_to_one_while_the_run_streams(tmp_path: Path) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    settings = {
        **{"runs_path": tmp_path, "run_name": "scaled", "data.train_path": tmp_path / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "checkpoint.every_steps": 0, "cluster.num_cpus": 4},
        **{"max_steps": STEPS, "batch_size": BATCH, "max_staleness": STALENESS, "batches_ahead": 1},
    }
    options = [f"--{key}={value}" for key, value in settings.items()]
    folder, log = tmp_path / "scaled", tmp_path / "log.txt"
    events = folder / "events.jsonl"
    with log.open("w") as output:
        line = [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *options]
        process = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(process, lambda: len(read_rows(folder / "metrics.jsonl")) >= 2, "the second step")
        assert "rollout-1" in launch("scale", tmp_path, "--rollout", "2", "--teacher", "2")
        added = {"rollout-1", "teacher-1"}
        until(process, lambda: "rollout-1" in loaders_of(events), "the weights of rollout-1")
        until(process, lambda: workers_of(events, "worker_started", "scale up") == added, "the new workers")
        status = json.loads(launch("status", tmp_path, "--json"))
        states = {w["name"]: w["state"] for pool in status["pools"].values() for w in pool["workers"]}
        assert states["rollout-1"] == states["teacher-1"] == "healthy"
        launch("scale", tmp_path, "--rollout", "1", "--teacher", "1")
        until(process, lambda: workers_of(events, "worker_retired", "scale down") == added, "the end of both")
        process.wait(300)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        print(log.read_text()[-5000:])
    assert process.returncode == 0
    rows = read_rows(folder / "metrics.jsonl")
    assert max(row["staleness/max"] for row in rows) <= STALENESS
    assert {row["workers/rollout"] for row in rows} == {row["workers/teacher"] for row in rows} == {1, 2}
    slots = sorted(
        int(uid.split("-")[0]) for uids in valid_ledger(folder / "ledger.jsonl").values() for uid in uids
    )
    assert slots == list(range(STEPS * BATCH))
    scaled = [(row["role"], row["from"], row["to"]) for row in read_rows(events) if row["event"] == "scaled"]
    assert scaled == [("rollout", 1, 2), ("teacher", 1, 2), ("rollout", 2, 1), ("teacher", 2, 1)]
    assert not any(row["event"] in ("worker_died", "worker_not_started") for row in read_rows(events))
    assert "-bound: " in json.loads((folder / "summary.json").read_text())["limit"]
    assert not (folder / "cluster.json").exists()
