"""docker/slurm/poweropd.sbatch with real Ray, engines and learner; SLURM itself is played.

The machines are those of a network: `srun` leaves a command in the folder of one, where a loop (`slurmd`) runs it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from records.files import read_rows
from records.run_folder import RunFolder
from settings.exit_codes import DRAINED
from tests.integration.chaos_run import check_ledger
from tests.integration.namespaces import ROOT, until
from tests.integration.network import Node, network
from tests.integration.scaled_run import AHEAD, BATCH, STALENESS

pytestmark = [pytest.mark.timeout(1200), pytest.mark.isolated, pytest.mark.slow]

BATCH_SCRIPT = str(ROOT / "docker" / "slurm" / "poweropd.sbatch")
JOB = "7"
SLURMD = """
mkdir -p "$0"; cd "$0"
while sleep 0.2; do
    for task in *.task; do
        [ -e "$task" ] || continue
        mv "$task" "$task.run"
        { bash "$task.run" >>log 2>&1 & echo $! >"$task.pid"; wait $!; echo $? >"$task.code"; } &
    done
    for stop in *.stop; do
        [ ! -e "$stop" ] || { kill "$(cat "${stop%.stop}.pid")"; rm "$stop"; }
    done
done
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    [[ $1 != --nodelist=* ]] || host=${1#*=}
    shift
done
task=$SPOOL/$host/$$.task
{ export -p; printf exec; printf ' %q' "$@"; } >"$SPOOL/$$"
mv "$SPOOL/$$" "$task"
trap 'touch "$task.stop"' TERM
until [ -s "$task.code" ]; do sleep 0.2; done
exit "$(cat "$task.code")"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && tr , "\\n" <<<"$3" || echo "$*" >>"$SPOOL/asked"
"""


class Slurm:
    """Machines of one job: the first one runs the batch script."""

    def __init__(self, folder: Path, machines: Mapping[str, Node]) -> None:
        self.spool, self.machines = folder / "spool", [*machines.values()]
        programs = folder / "bin"
        for path in (self.spool, programs):
            path.mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment = {
            **{"SPOOL": str(self.spool), "HOME": str(folder), "PATH": f"{programs}:/usr/sbin:/usr/bin:/bin"},
            **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": JOB, "SLURM_CPUS_ON_NODE": "2"},
            **{"SLURM_JOB_NODELIST": ",".join(node.address for node in self.machines)},
            **{"POWEROPD_VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
        }
        for node in self.machines:
            node.start(["bash", "-c", SLURMD, str(self.spool / node.address)])

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[Any]:
        """Start the job's batch script."""
        with log.open("ab") as output:
            environment = os.environ | self.environment
            line = ["bash", BATCH_SCRIPT, *arguments]
            return self.machines[0].start(line, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def signal(self, number: int) -> None:
        """Send a signal to the batch script alone, as `--signal=B:` and `scancel --batch` do."""
        shells = [p for p in self.machines[0].processes(BATCH_SCRIPT) if p.name() == "bash"]
        min(shells, key=psutil.Process.create_time).send_signal(number)

    @property
    def asked(self) -> list[str]:
        """What `scontrol` was asked, but for the names of nodes."""
        asked = self.spool / "asked"
        return asked.read_text().splitlines() if asked.is_file() else []

    def has_ended(self) -> bool:
        """True if nothing of Ray is left on any machine."""
        return not any(node.processes("raylet") for node in self.machines)


def test_a_job_that_is_preempted_drains_is_requeued_and_continues(tmp_path: Path) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    values = {
        **{"config": "configs/demo.yaml", "runs-path": tmp_path, "run-name": "job", "max_steps": 20000},
        **{"data.train_path": tmp_path / "data" / "train.jsonl", "evaluation.data_path": "null"},
        **{"batch_size": BATCH, "max_staleness": STALENESS, "batches_ahead": AHEAD},
        **{f"{role}.model_path": ROOT / f"examples/arithmetic/models/{role}" for role in ("student", "teacher")},
    }
    options = [f"--{key}={value}" for key, value in values.items()]
    folder, log = RunFolder(tmp_path / "job"), tmp_path / "job.log"
    token = tmp_path / ".ray" / f"slurm-{JOB}.token"

    def steps() -> int:
        return len(folder.valid_metrics())

    with network(tmp_path, ["first", "second", "third"]) as machines:
        slurm = Slurm(tmp_path, machines)
        try:
            job = slurm.start(log, *options)
            until(lambda: folder.metrics.is_file() and steps() >= 3, "the third step", job)
            assert token.stat().st_mode & 0o777 == 0o600
            slurm.signal(signal.SIGUSR1)
            assert job.wait(120) == DRAINED
            assert slurm.asked == [f"requeue {JOB}"]
            assert not token.exists()
            until(slurm.has_ended, "the end of the job's Ray", timeout_s=60)
            before = steps()
            check_ledger(folder)

            job = slurm.start(log, *options)
            until(lambda: steps() >= before + 3, "three more steps", job)
            slurm.signal(signal.SIGTERM)
            assert job.wait(120) == DRAINED
            assert slurm.asked == [f"requeue {JOB}"], "it was not asked for again"
        finally:
            print(log.read_text()[-8000:])
            for path in slurm.spool.glob("*/log"):
                print(f"--- {path}\n{path.read_text()[-2000:]}")
    check_ledger(folder)
    started = [row for row in read_rows(folder.events) if row["event"] == "worker_started"]
    nodes = {"learner-0": "head", "teacher-0": "teacher-0", "rollout-0": "rollout-0"}
    assert {row["worker"]: row["node"] for row in started} == nodes
