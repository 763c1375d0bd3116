"""A run from the command line with real engines, scaled up and down from other processes."""

import json
from pathlib import Path

import pytest

from tests.integration.scaled_run import ADDED, scaled_run

pytestmark = pytest.mark.timeout(600)
STEPS = 400


def test_rollout_grows_to_three_and_teacher_to_two_and_both_shrink_to_one_while_the_run_streams(
    tmp_path: Path,
) -> None:
    with scaled_run(tmp_path, steps=STEPS, **{"cluster.num_cpus": 4}) as run:
        workers = run.scale_up_and_down()
        assert {workers[name]["state"] for name in ADDED} == {"healthy"}
        run.process.wait(300)
        run.check(STEPS)
        print(f"tok/s with 1, 3 rollout workers: {run.throughput(1):.0f}, {run.throughput(3):.0f}")
        assert "-bound: " in json.loads(run.folder.summary.read_text())["limit"]
