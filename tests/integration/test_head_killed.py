"""The head of the cluster dies and comes back while a simulated run is running with its driver on another node."""

import time
from pathlib import Path

import pytest

from settings.exit_codes import FAILED, FINISHED
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network_run import NetworkRun, network_run

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]

STEPS = 150
NODES = {
    "head": NodeOptions(num_cpus=0),
    "driver": NodeOptions(num_cpus=1, custom={"learner": 1}),
    "a": NodeOptions(num_cpus=1, custom={"rollout": 1}),
    "b": NodeOptions(num_cpus=1, custom={"rollout": 1, "teacher": 1}),
}
OFF_S = 5.0


def kill_gcs(run: NetworkRun) -> None:
    """Kill the cluster's store of state; Ray ends on the head then, and is started again."""
    run.nodes["head"].kill("gcs_server")


def switch_off(run: NetworkRun) -> None:
    """Kill everything on the head, and start it again."""
    head = run.nodes["head"]
    head.power_off()
    time.sleep(OFF_S)
    head.power_on()
    run.ray.start("head", NODES["head"])


@pytest.mark.parametrize("kill", [kill_gcs, switch_off])
def test_a_run_goes_on_through_a_restart_of_a_head_that_stores_its_state(tmp_path: Path, kill: object) -> None:
    assert callable(kill)
    store = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "gcs")}
    with network_run(tmp_path, NODES, driver="driver", steps=STEPS, **store) as run:
        with run.started() as process:
            run.until_step(5, process)
            kill(run)
            assert process.wait(300) == FINISHED
        run.check()
        assert not run.events("resumed") + run.events("worker_died")


def test_a_run_ends_with_a_head_that_stores_nothing_and_is_resumed(tmp_path: Path) -> None:
    with network_run(tmp_path, NODES, driver="driver", steps=10 * STEPS) as run:
        with run.started() as process:
            run.until_step(15, process)
            kill_gcs(run)
            killed = time.monotonic()
            assert process.wait(200) == FAILED
            print(f"the run ended {time.monotonic() - killed:.1f} s after the head, at step {run.step()}")
        run.steps = run.step() + 20
        codes: list[int] = []

        def is_finished() -> bool:
            """As a supervisor would: until the other nodes are back in the new cluster, too."""
            with run.started() as process:
                codes.append(process.wait(200))
            return codes[-1] == FINISHED

        until(is_finished, "the end of the resumed run")
        run.check()
