"""The benchmarks of the hand-over and of weights run at a tiny size, on the real path."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def row_of(script: str, *arguments: str) -> dict[str, Any]:
    line = [sys.executable, f"benchmarks/{script}.py", "--warmup=0", "--runs=1", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=360, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("signal", ["token", "topk"])
def test_the_hand_over_is_measured_by_part_and_every_part_takes_time(signal: str) -> None:
    row = row_of("data_plane", "--steps=2", "--responses=4", "--tokens=8", f"--signal={signal}")
    measured = {name: values["median"] for name, values in row["variants"]["tables"].items()}
    parts = [value for name, value in measured.items() if name.startswith(("build_", "ship_"))]
    assert len(parts) == 6
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(measured["seconds"], rel=1e-3)
    own = 4 + 8 * 20 if signal == "topk" else 4
    assert row["bytes_per_response_token"] > 12 + own, "ids, targets and two log-probs travel"


def test_publish_and_load_are_measured_beside_a_copy_of_the_same_bytes() -> None:
    row = row_of("weights", "--size=tiny", "--settle-s=0.2")
    update, copy = row["variants"]["update"], row["variants"]["copy"]
    parts = ("publish_s", "fetch_s", "check_s", "pause_s", "load_s")
    assert sum(update[name]["median"] for name in parts) == pytest.approx(
        update["publish_and_load_s"]["median"], rel=1e-3
    )
    assert update["update_s"]["median"] > update["load_s"]["median"]
    assert copy["limit_s"]["median"] == pytest.approx(0.2 + 2 * copy["seconds"]["median"], rel=1e-3)
    assert row["bytes"] > 0
