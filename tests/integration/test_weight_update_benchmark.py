"""The benchmark of weight updates runs at a tiny size, with two engines that fetch a version once between them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_reports_all_parts_of_an_update_and_one_fetch_per_version() -> None:
    sizes = ["--size=tiny", "--runs=2", "--warmup=0", "--engines=2", "--settle-s=0.3", "--delta"]
    line = [sys.executable, "benchmarks/weights.py", *sizes]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=360, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.strip().splitlines()[-1])["variants"]["update"]
    row = {name: spread["median"] for name, spread in seen.items()}
    assert seen["num_fetches"]["max"] == 1
    assert 0 < row["bytes_fetched"] < 0.2 * row["bytes"]
    parts = ("publish_s", "fetch_s", "check_s", "pause_s", "load_s", "verify_s", "gap_s")
    assert all(row[part] > 0 for part in parts)
    assert row["stopped_s"] == pytest.approx(row["pause_s"] + row["load_s"] + row["verify_s"], rel=0.5)
    assert row["update_s"] > row["publish_s"] + row["load_s"]
