"""The demo under fire trains a student as good as the demo without faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.integration.namespaces import ROOT, until

pytestmark = [pytest.mark.timeout(3600), pytest.mark.slow, pytest.mark.chaos]

STEPS, BATCH = 160, 64
MARGIN = 0.03


def train(path: Path, name: str, *, kill_every_s: int | None) -> float:
    """Train the demo to its end, with a kill every so often if wanted; the student's avg@8 on held-out data."""
    values = {
        **{"runs_path": path, "run_name": name, "seed": 0, "max_steps": STEPS, "batch_size": BATCH},
        **{"data.train_path": path / "data" / "train.jsonl", "checkpoint.every_steps": 5, "cluster.num_cpus": 6},
        **{"evaluation.data_path": path / "data" / "heldout.jsonl"},
        **{"rollout.num_workers": 2, "teacher.num_workers": 2},
    }
    options = [f"--{key}={value}" for key, value in values.items()]
    launch, folder = [sys.executable, "launch.py"], RunFolder(path / name)
    with (path / f"{name}.log").open("w") as log:
        line = [*launch, "train", "--config", "configs/demo.yaml", *options]
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        if kill_every_s is not None:
            until(lambda: len(folder.valid_metrics()) >= 6, "the sixth step", process)
            line = [*launch, "chaos", f"--run={name}", f"--runs-path={path}", f"--every={kill_every_s}s"]
            done = subprocess.run([*line, "--duration=1h"], cwd=ROOT, capture_output=True, text=True, timeout=2400)
            print(done.stdout, done.stderr[-3000:])
            assert done.returncode == 0
        assert process.wait(1500) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
        print((path / f"{name}.log").read_text()[-2000:])
    slots = sorted(int(uid.split("-")[0]) for uids in valid_ledger(folder.ledger).values() for uid in uids)
    assert slots == list(range(STEPS * BATCH))
    return read_rows(folder.path / "eval.jsonl")[-1]["avg_at_k"]


def test_a_demo_with_a_kill_every_few_seconds_ends_within_three_points_of_one_without(tmp_path: Path) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    plain = train(tmp_path, "plain", kill_every_s=None)
    under_fire = train(tmp_path, "under-fire", kill_every_s=20)
    print(f"avg@8 {plain:.3f} without faults, {under_fire:.3f} under fire")
    assert under_fire >= plain - MARGIN
