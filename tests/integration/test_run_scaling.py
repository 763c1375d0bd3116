"""A run from the command line with real engines, scaled, put under fire and stopped from other processes."""

from pathlib import Path

import pytest

from tests.integration.chaos_run import chaos, check_report, drain_and_check
from tests.integration.scaled_run import scaled_run

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]


def test_workers_are_added_killed_and_retired_by_command_while_the_run_streams_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    """1 -> 3 -> 1 rollout workers, 1 -> 2 -> 1 teachers; between, one worker of each kind is killed."""
    with scaled_run(tmp_path, **{"cluster.num_cpus": 4, "checkpoint.every_steps": 5}) as run:
        run.scale_up()
        # One of several, so that another is healthy for each kill whatever the machine does; the learner alone.
        check_report(chaos(run, "rollout,teacher", every_s=5, duration_s=11), {"rollout": 1, "teacher": 1})
        check_report(chaos(run, "learner", every_s=2, duration_s=3), {"learner": 1})
        run.scale_down()
        drain_and_check(run)
        run.check_scaled()
