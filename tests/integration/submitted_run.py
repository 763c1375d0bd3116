"""A run of the demo's tiny models that is submitted to a Ray cluster as a job, and what its folder then holds."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from controller.recovery import Progress
from records.checkpoints import committed_steps, read_manifest, verify
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.integration.namespaces import HEAD, ROOT, until

JOBS = f"http://{HEAD}:8265"
BATCH = 8
LAUNCH = [sys.executable, "launch.py"]
SUBMIT = [*LAUNCH, "submit", "--address", JOBS]


class SubmittedRun:
    """One run, by its name, of a cluster that `ray_nodes(..., with_jobs=True)` started."""

    def __init__(self, path: Path, name: str = "job", **settings: Any) -> None:
        """It would take hours unless `settings` say otherwise."""
        script = ROOT / "examples" / "arithmetic" / "problems.py"
        subprocess.run([sys.executable, script, "--out", path / "data"], check=True, timeout=60)
        self.path, self.name, self.root = path, name, ROOT
        self.folder = RunFolder(path / name)
        self.settings: dict[str, Any] = {
            **{"runs_path": path, "run_name": name, "data.train_path": path / "data" / "train.jsonl"},
            **{"evaluation.data_path": "null", "checkpoint.every_steps": 2, "max_steps": 20000},
            **{"batch_size": BATCH, **settings},
        }

    def command(self, *flags: str) -> list[str]:
        """The line that submits it."""
        options = [f"--{key}={value}" for key, value in self.settings.items()]
        return [*SUBMIT, "--config", "configs/demo.yaml", *flags, *options]

    def submit(self, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit it without following it."""
        return ran(self.command(*flags), **environment)

    def ask(self, action: str) -> subprocess.CompletedProcess[str]:
        """`--stop` or `--status`."""
        return ran([*SUBMIT, action, "--run", self.name])

    @contextmanager
    def followed(self, *flags: str) -> Iterator[tuple[subprocess.Popen[Any], Path]]:
        """Submit it and follow it in a process; also gives the file of what that prints."""
        log = self.path / f"followed_{len([*self.path.glob('followed_*')])}.txt"
        with log.open("w") as out:
            process = subprocess.Popen(self.command("--follow", *flags), cwd=self.root, stdout=out, stderr=out)
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait(60)
            print(log.read_text()[-4000:])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The cluster's submitted jobs by name."""
        token = (self.path / "token").read_text()
        return {job["submission_id"]: job for job in asked("/api/jobs/", token)[1] if job["submission_id"]}

    def num_steps(self) -> int:
        """Steps that count."""
        return len(self.folder.valid_metrics())

    def until_steps(self, at_least: int, process: subprocess.Popen[Any] | None = None) -> None:
        """Wait for so many steps."""
        until(lambda: self.num_steps() >= at_least, f"step {at_least}", process)

    def drivers(self) -> list[psutil.Process]:
        """The processes of `launch.py train`: the one that supervises, and its child."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if line[2:3] == ["train"] and line[1].endswith("launch.py"):
                found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def check_drained(self) -> int:
        """After a drain: the newest checkpoint is complete, and every slot below it was trained once; its step."""
        last = self.num_steps()
        newest = committed_steps(self.folder.checkpoints)[-1]
        assert newest == last
        verify(self.folder.checkpoints / f"step_{newest}")
        slots = self.trained_slots()
        assert len(set(slots)) == len(slots) == last * BATCH
        manifest = read_manifest(self.folder.checkpoints / f"step_{newest}")
        frontier = Progress.from_json(manifest.client_state).frontier
        assert slots == [*range(frontier.lowest_untrained), *frontier.trained_above]
        return last

    def trained_slots(self) -> list[int]:
        """The slots of the ledger in order, each as often as it was trained."""
        ledger = valid_ledger(self.folder.ledger)
        assert sorted(ledger) == list(range(1, len(ledger) + 1))
        return sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [row for row in read_rows(self.folder.events) if row["event"] == kind]


def ran(line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command said and how it ended; shown if the test fails."""
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | environment
    )
    print(done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done


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
