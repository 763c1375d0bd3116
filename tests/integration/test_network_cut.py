"""Cables between machines are cut and healed while a simulated run is running."""

import time
from pathlib import Path

import pytest

from settings.exit_codes import FINISHED
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network_run import network_run

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]

STEPS = 150
CUT_S = 20.0
NODES = {
    "head": NodeOptions(num_cpus=1, custom={"teacher": 1}),
    "learner": NodeOptions(num_cpus=1, custom={"learner": 1}),
    "a": NodeOptions(num_cpus=1, custom={"rollout": 1}),
    "b": NodeOptions(num_cpus=1, custom={"rollout": 1}),
}
FAST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that is silent for about 8 s counts as dead."""


@pytest.mark.parametrize("limits", [{}, FAST], ids=["default limits", "fast limits"])
def test_a_run_outlives_a_cut_of_a_rollout_workers_node(tmp_path: Path, limits: dict[str, str]) -> None:
    """By Ray's defaults the node lives on; where it counts as dead its work is done elsewhere."""
    with network_run(tmp_path, NODES, driver="head", steps=STEPS, **limits) as run:
        with run.started() as process:
            run.until_step(5, process)
            run.nodes["a"].cut()
            time.sleep(CUT_S)
            run.nodes["a"].heal()
            healed, at = time.monotonic(), run.step()
            run.until_step(min(at + 5, STEPS), process)
            print(f"step {at} at the end of the cut, five more within {time.monotonic() - healed:.1f} s")
            assert process.wait(200) == FINISHED
        run.check()
        assert {row["worker"] for row in run.events("worker_died")} <= {"rollout-0", "rollout-1"}


def test_a_cut_of_the_learners_node_ends_in_a_resume_from_its_checkpoint(tmp_path: Path) -> None:
    """The learner is lost; it is restarted once its node is back, and the run continues from the checkpoint."""
    with network_run(tmp_path, NODES, driver="head", steps=STEPS) as run:
        with run.started() as process:
            run.until_step(15, process)
            run.nodes["learner"].cut()
            cut = time.monotonic()
            until(lambda: run.events("learner_lost"), "the loss of the learner", process)
            print(f"the learner was found lost {time.monotonic() - cut:.1f} s after the cut")
            run.nodes["learner"].heal()
            healed = time.monotonic()
            until(lambda: run.events("learner_restarted"), "the learner's return", process)
            print(f"it was back {time.monotonic() - healed:.1f} s after the cable")
            assert process.wait(300) == FINISHED
        run.check()
