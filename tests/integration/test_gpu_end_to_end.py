"""The benchmark of a whole run works where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_run_on_cpus_reports_rates_and_where_time_goes() -> None:
    size = ["--size=tiny", "--device=cpu", "--batch-size=8", "--prompt-tokens=8", "--response-tokens=16"]
    steps = ["--warmup=1", "--runs=2", "--micro-batch-tokens=256"]
    command = [sys.executable, "benchmarks/gpu_end_to_end.py", *size, *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["peak"]["source"] == "measured"
    assert row["parameters"]["student"] < row["parameters"]["teacher"]
    step = row["variants"]["run"]
    assert step["tokens_per_s"]["min"] > 0
    assert 0 < step["train_s"]["median"] <= step["step_s"]["median"]
