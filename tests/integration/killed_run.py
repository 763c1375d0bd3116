"""A run of the demo's tiny models in a process that is killed, and what its folder and the machine then hold."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.orphans import EVERY_PROCESS, processes_of
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.integration.namespaces import ROOT, until

STEPS, BATCH = 12, 16


class KilledRun:
    """A run of a few steps that is started, killed and resumed."""

    def __init__(self, path: Path) -> None:
        script = ROOT / "examples" / "arithmetic" / "problems.py"
        subprocess.run([sys.executable, script, "--out", path / "data"], check=True, timeout=60)
        self.path = path
        self.folder = RunFolder(path / "killed")
        self.sessions: set[str] = set()

    def command(self, *flags: str, **settings: Any) -> list[str]:
        """The command line that starts it."""
        values = {
            **{"runs_path": self.path, "run_name": "killed", "max_steps": STEPS, "batch_size": BATCH},
            "data.train_path": self.path / "data" / "train.jsonl",
            "evaluation.data_path": self.path / "data" / "heldout.jsonl",
            **{"evaluation.max_problems": 8, "evaluation.num_samples": 2, "evaluation.k": 2},
            **{"checkpoint.every_steps": 2, "cluster.num_cpus": 4, **settings},
        }
        options = [f"--{key}={value}" for key, value in values.items()]
        return [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *flags, *options]

    def run(self, *flags: str, timeout_s: float = 300, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end; its output is shown if the test fails."""
        line = self.command(*flags, **settings)
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
        print(done.stdout[-3000:], done.stderr[-6000:])
        return done

    @contextmanager
    def started(self, *flags: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
        """The run while it is running; it is killed at the end if it has not ended."""
        log = self.path / "log.txt"
        with log.open("ab") as output:
            line = self.command(*flags, **settings)
            process = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(log.read_text()[-3000:])

    def step(self) -> int:
        """The newest step that counts."""
        return max(valid_ledger(self.folder.ledger), default=0)

    def until(self, condition: Any, what: str, process: subprocess.Popen[bytes]) -> None:
        """Wait while the run is running, and remember which Ray it started."""
        until(condition, what, process, timeout_s=300)
        self.note_session()

    def note_session(self) -> None:
        """Remember the Ray session that the folder names, if any."""
        cluster = self.folder.read_cluster()
        if cluster is not None:
            self.sessions.add(cluster["session"])

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [row for row in read_rows(self.folder.events) if row["event"] == kind]

    def check(self) -> None:
        """Every slot was trained exactly once, and of no Ray session is anything left."""
        ledger = valid_ledger(self.folder.ledger)
        assert sorted(ledger) == list(range(1, STEPS + 1))
        assert [row["step"] for row in self.folder.valid_metrics()] == list(range(1, STEPS + 1))
        uids = [uid for uids in ledger.values() for uid in uids]
        assert sorted(int(uid.split("-")[0]) for uid in uids) == list(range(STEPS * BATCH))
        assert (self.folder.export / "config.json").is_file()
        assert self.folder.summary.is_file()
        assert not self.folder.cluster.exists()
        for session in self.sessions:  # of a run killed while it shut down, Ray's agents stay for a minute
            until(
                lambda session=session: not processes_of(session, EVERY_PROCESS), "the last process", timeout_s=90
            )


def frozen(driver: psutil.Process, name: str) -> psutil.Process:
    """Freeze a process of the run's Ray: it will not notice that its driver has ended."""
    [process] = [each for each in driver.children(recursive=True) if each.name().startswith(f"ray::{name}")]
    process.send_signal(signal.SIGSTOP)
    return process
