"""A run of the demo's models with real engines that is put under fire, and what must be true of it afterwards."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from commands.chaos.report import Kill, recovery_s
from controller.recovery import Progress
from records.checkpoints import read_manifest
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.integration.namespaces import ROOT, until
from tests.integration.scaled_run import STALENESS, ScaledRun, scaled_run

TWO_OF_EACH = {
    **{"rollout.num_workers": 2, "teacher.num_workers": 2, "learner.num_workers": 2, "cluster.num_cpus": 6},
    **{"batch_size": 32, "checkpoint.every_steps": 5},
}


@contextmanager
def run_under_fire(path: Path, **settings: Any) -> Iterator[ScaledRun]:
    """A run that would take hours, some steps after its start."""
    with scaled_run(path, **settings) as run:
        run.until(lambda: len(run.rows()) >= 8, "the eighth step")
        yield run


def chaos(run: ScaledRun, kinds: str, *, every_s: float, duration_s: float) -> dict[str, Any]:
    """The numbers that `launch.py chaos` reports; it must find nothing lost."""
    options = [f"--run={run.folder.path.name}", f"--runs-path={run.folder.path.parent}", "--log-level=info"]
    options += [f"--every={every_s}s", f"--duration={duration_s}s", f"--kill={kinds}", "--seed=0", "--json"]
    line = [sys.executable, "launch.py", "chaos", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=4 * duration_s + 400)
    print(done.stdout, done.stderr[-4000:])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_report(numbers: dict[str, Any], kinds: dict[str, int]) -> None:
    """Nothing was lost, trained twice or too old, and everything that was killed came back."""
    assert (numbers["lost"], numbers["trained_twice"], numbers["given_up"]) == (0, 0, 0)
    assert numbers["bound_kept"]
    for kind, least in kinds.items():
        assert numbers["kills"][kind] >= least, numbers["kills"]
        assert numbers["recovery_s"][kind]["not_seen"] == 0


def drain_and_check(run: ScaledRun) -> None:
    """Drain the run and check what it leaves."""
    run.stop()
    check_ledger(run.folder)


def check_ledger(folder: RunFolder) -> None:
    """A drained run's ledger holds exactly what its last checkpoint says was trained, and nothing was too old."""
    ledger = valid_ledger(folder.ledger)
    version = max(ledger)
    assert sorted(ledger) == list(range(1, version + 1))
    slots = sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)
    assert len(set(slots)) == len(slots)
    manifest = read_manifest(folder.checkpoints / f"step_{version}")
    frontier = Progress.from_json(manifest.client_state).frontier
    assert slots == [*range(frontier.lowest_untrained), *frontier.trained_above]
    assert max(row["staleness/max"] for row in folder.valid_metrics()) <= STALENESS


def hurt(run: ScaledRun, names: tuple[str, ...], act: Callable[[psutil.Process], None]) -> dict[str, float]:
    """Do something to workers' processes, wait until they serve again; seconds until each was found dead."""
    pids = {row["worker"]: row["pid"] for row in run.events("worker_started")}  # of the newest life
    at = time.time()
    kills = {name: Kill(at, name.partition("-")[0], (name,)) for name in names}
    for name in names:
        act(psutil.Process(pids[name]))

    def found_at(name: str) -> float | None:
        died = [row["time"] for row in run.events("worker_died") if row["worker"] == name and row["time"] >= at]
        return min(died, default=None)

    def is_back(name: str) -> bool:
        return found_at(name) is not None and recovery_s(run.folder, kills[name]) is not None

    run.until(lambda: all(map(is_back, names)), f"{names} to serve again")
    found = {name: (found_at(name) or at) - at for name in names}
    for name in names:
        print(f"{name}: found after {found[name]:.1f} s, back after {recovery_s(run.folder, kills[name]):.1f} s")
        until(lambda pid=pids[name]: not psutil.pid_exists(pid), f"the end of {name}'s process", timeout_s=60)
    return found


def freeze(process: psutil.Process) -> None:
    """Stop a process without its end."""
    process.send_signal(signal.SIGSTOP)


def kill_engine(process: psutil.Process) -> None:
    """Kill the child in which vLLM's model runs; the actor itself lives on."""
    [engine] = [child for child in process.children(recursive=True) if child.name().startswith("VLLM::")]
    engine.kill()
    assert process.is_running()
