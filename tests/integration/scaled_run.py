"""A run with real engines that is scaled by command, 1 -> 3 -> 1 rollout and 1 -> 2 -> 1 teacher workers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controller.recovery import Progress
from records.checkpoints import read_manifest
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from settings.exit_codes import DRAINED
from tests.integration.namespaces import ROOT, until
from tests.integration.real_run import write_problems

STALENESS, AHEAD, BATCH = 2, 1, 8
ADDED = {"rollout-1", "rollout-2", "teacher-1"}


class ScaledRun:
    """The run's process, and what its folder says."""

    def __init__(self, process: subprocess.Popen[Any], folder: RunFolder) -> None:
        self.process = process
        self.folder = folder

    def launch(self, command: str, *options: str) -> str:
        """The output of `scale`, `status` or `stop`, which must succeed."""
        run = [f"--run={self.folder.path.name}", f"--runs-path={self.folder.path.parent}"]
        line = [sys.executable, "launch.py", command, *run, *options]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def workers(self) -> dict[str, dict[str, Any]]:
        """Status of every worker by name."""
        status = json.loads(self.launch("status", "--json"))
        return {worker["name"]: worker for pool in status["pools"].values() for worker in pool["workers"]}

    def events(self, kind: str, reason: str | None = None) -> list[dict[str, Any]]:
        """The events of one kind, and with one reason if it is given."""
        rows = [row for row in read_rows(self.folder.events) if row["event"] == kind]
        return [row for row in rows if reason is None or row["reason"] == reason]

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the steps so far."""
        return read_rows(self.folder.metrics)

    def until(self, condition: Any, what: str) -> None:
        """Wait while the run is running."""
        until(condition, what, self.process)

    def scale_up_and_down(self) -> dict[str, dict[str, Any]]:
        """Let the run grow, work with all its workers for some steps, and shrink; the workers' status between."""
        workers = self.scale_up()
        self.scale_down()
        return workers

    def scale_up(self) -> dict[str, dict[str, Any]]:
        """Let the run grow and work with all its workers for some steps; returns the workers' status."""
        self.until(lambda: len(self.rows()) >= 5, "the fifth step")
        assert "rollout-2" in self.launch("scale", "--rollout", "3", "--teacher", "2")
        self.until(lambda: self.rows()[-1]["workers/rollout"] == 3, "three rollout workers")
        self.until(lambda: self.rows()[-1]["workers/teacher"] == 2, "two teacher workers")
        grown, workers = len(self.rows()), self.workers()
        self.until(lambda: len(self.rows()) >= grown + 5, "five steps with all workers")
        assert {workers[name]["state"] for name in ADDED} == {"healthy"}
        return workers

    def scale_down(self) -> None:
        """Let the run shrink and work with its first workers for some steps."""
        self.launch("scale", "--rollout", "1", "--teacher", "1")
        self.until(lambda: len(self.events("worker_retired", "scale down")) == 3, "the end of the added workers")
        shrunk = len(self.rows())
        self.until(lambda: len(self.rows()) >= shrunk + 5, "five steps with the first workers")

    def stop(self) -> None:
        """Stop the run by command and wait for its end."""
        assert "finishes the step in progress" in self.launch("stop")
        assert self.process.wait(300) == DRAINED

    def check(self) -> None:
        """After its end: nothing was lost, trained twice or too old, and metrics and events follow the workers.

        A lost slot would have stalled the run, since no batch is formed that misses a deadline; what is not
        trained at the end is what the checkpoint says is open, and that is no more than the start window.
        """
        rows = self.rows()
        assert max(row["staleness/max"] for row in rows) <= STALENESS
        ledger = valid_ledger(self.folder.ledger)
        slots = sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)
        assert len(set(slots)) == len(slots) == len(rows) * BATCH
        checkpoint = self.folder.checkpoints / f"step_{len(rows)}"
        frontier = Progress.from_json(read_manifest(checkpoint).client_state).frontier
        assert slots == [*range(frontier.lowest_untrained), *frontier.trained_above]
        assert slots[-1] + 1 - len(slots) <= (1 + AHEAD) * BATCH
        counts = [(row["workers/rollout"], row["workers/teacher"]) for row in rows]
        assert counts[0] == counts[-1] == (1, 1)
        assert (3, 2) in counts
        assert self.throughput(1) > 0
        assert self.throughput(3) > 0
        self.check_scaled()
        assert not self.events("worker_died") + self.events("worker_not_started")
        assert not self.folder.cluster.exists()

    def check_scaled(self) -> None:
        """The events say who was added and retired, and why."""
        scaled = [(row["role"], row["from"], row["to"]) for row in self.events("scaled")]
        assert scaled == [("rollout", 1, 3), ("teacher", 1, 2), ("rollout", 3, 1), ("teacher", 2, 1)]
        assert {row["worker"] for row in self.events("worker_started", "scale up")} == ADDED
        assert {row["worker"] for row in self.events("worker_retired", "scale down")} == ADDED
        assert {"rollout-1", "rollout-2"} < {row["worker"] for row in self.events("weights_loaded")}

    def throughput(self, num_rollout: int) -> float:
        """Mean of the rollout tokens per second over the steps with so many rollout workers."""
        rows = [row for row in self.rows() if row["workers/rollout"] == num_rollout]
        seconds = sum(row["time/step_s"] for row in rows)
        return sum(row["throughput/rollout"] * row["time/step_s"] for row in rows) / seconds


@contextmanager
def scaled_run(path: Path, **settings: Any) -> Iterator[ScaledRun]:
    """A run on the demo's models that would take an hour; it is drained at the end."""
    write_problems(path)
    values = {
        **{"runs_path": path, "run_name": "scaled", "data.train_path": path / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "checkpoint.every_steps": 0},
        **{"max_steps": 20000, "batch_size": BATCH, "max_staleness": STALENESS, "batches_ahead": AHEAD},
        **settings,
    }
    options = [f"--{key}={value}" for key, value in values.items()]
    log = path / "log.txt"
    with log.open("w") as output:
        line = [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *options]
        process = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield ScaledRun(process, RunFolder(path / "scaled"))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(200)
        print(log.read_text()[-5000:])
