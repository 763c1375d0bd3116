"""Benchmarks with real engines work at a tiny size, without a GPU."""

import json
import sys
from typing import Any

import pytest

from tests.integration.real_run import ROOT, run

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def row_of(script: str, *options: str) -> dict[str, Any]:
    """The row that a benchmark prints."""
    done = run([sys.executable, str(ROOT / "benchmarks" / script), *options])
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


def test_weight_updates_report_all_their_parts_and_one_fetch_per_version() -> None:
    sizes = ["--size=tiny", "--runs=2", "--warmup=0", "--engines=2", "--settle-s=0.3", "--delta"]
    seen = row_of("weight_update.py", *sizes)["variants"]["update"]
    row = {name: spread["median"] for name, spread in seen.items()}
    assert seen["num_fetches"]["max"] == 1
    assert 0 < row["bytes_fetched"] < 0.2 * row["bytes"]
    parts = ("publish_s", "fetch_s", "check_s", "pause_s", "load_s", "verify_s", "gap_s")
    assert all(row[part] > 0 for part in parts)
    assert row["stopped_s"] == pytest.approx(row["pause_s"] + row["load_s"] + row["verify_s"], rel=0.5)
    assert row["update_s"] > row["publish_s"] + row["load_s"]


def test_a_tiny_run_reports_rates_and_where_time_goes() -> None:
    size = ["--size=tiny", "--device=cpu", "--batch-size=8", "--prompt-tokens=8", "--response-tokens=16"]
    row = row_of("gpu_end_to_end.py", *size, "--warmup=1", "--runs=2", "--micro-batch-tokens=256")
    assert row["peak"]["source"] == "measured"
    assert row["parameters"]["student"] < row["parameters"]["teacher"]
    step = row["variants"]["run"]
    assert step["tokens_per_s"]["min"] > 0
    assert 0 < step["train_s"]["median"] <= step["step_s"]["median"]
