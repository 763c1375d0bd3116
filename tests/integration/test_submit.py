"""`launch.py submit` on a Ray cluster with token authentication: submitted, followed, stopped, continued, retried."""

import re
from pathlib import Path

import pytest

from cluster.command_line import BAD_INPUT, DRAINED, FINISHED
from tests.integration.namespaces import NodeOptions, ray_nodes, until
from tests.integration.submitted_run import SubmittedRun, asked, ran

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated]
MAX_UPLOAD_BYTES = 20 * 2**20
NODES = {"head": NodeOptions(num_cpus=4)}


def test_a_submitted_run_is_one_job_whose_steps_are_followed_and_drains_when_it_is_stopped(tmp_path: Path) -> None:
    run = SubmittedRun(tmp_path)
    with ray_nodes(tmp_path, NODES, with_jobs=True), run.followed("--grace=120") as (process, log):
        run.until_steps(2, process)
        again = run.submit("--grace=120")
        assert (again.returncode, again.stdout.splitlines()[0]) == (
            FINISHED,
            "job: goes on already; nothing was changed",
        )
        stopped = run.ask("--stop")
        assert stopped.returncode == FINISHED
        assert process.wait(60) == DRAINED
        last = run.check_drained()
        assert f"job: drained at step {last}, checkpoint saved" in stopped.stderr
        assert {name: job["status"] for name, job in run.jobs().items()} == {"job": "STOPPED"}
        followed = log.read_text()
    assert [int(step) for step in re.findall(r"^step (\d+)/", followed, re.MULTILINE)] == list(range(1, last + 1))
