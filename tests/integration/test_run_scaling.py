"""A run from the command line with real engines, scaled up and down and stopped from other processes."""

from pathlib import Path

import pytest

from tests.integration.scaled_run import scaled_run

pytestmark = pytest.mark.timeout(900)


def test_rollout_grows_to_three_and_teacher_to_two_and_both_shrink_to_one_while_the_run_streams(
    tmp_path: Path,
) -> None:
    with scaled_run(tmp_path, **{"cluster.num_cpus": 4}) as run:
        run.scale_up_and_down()
        run.stop()
        run.check()
        print(f"tok/s with 1, 3 rollout workers: {run.throughput(1):.0f}, {run.throughput(3):.0f}")
