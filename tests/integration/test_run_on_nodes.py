"""A run with real engines on a cluster of several nodes in groups, scaled up and down by command."""

from pathlib import Path

import pytest

from tests.integration.namespaces import NodeOptions, driver, ray_nodes
from tests.integration.scaled_run import scaled_run

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]
NODES = {
    "head": NodeOptions(num_cpus=1),
    "learner": NodeOptions(num_cpus=1),
    "rollout-a": NodeOptions(custom={"rollout": 2}),
    "rollout-b": NodeOptions(custom={"rollout": 1}),
    "teachers": NodeOptions(custom={"teacher": 2}),
}


def test_workers_join_and_leave_on_the_nodes_of_their_group_while_the_run_streams(tmp_path: Path) -> None:
    with ray_nodes(tmp_path, NODES) as address:
        with driver(address, len(NODES)):
            pass
        groups = {f"{role}.resources.custom.{role}": 1 for role in ("rollout", "teacher")}
        learner = {"learner.num_workers": 2, "cluster.learner_strategy": "spread"}
        settings = {"cluster.address": address, **learner, **groups}
        with scaled_run(tmp_path, **settings) as run:
            workers = run.scale_up_and_down()
            run.stop()
            run.check()
            print(f"tok/s with 1, 3 rollout workers: {run.throughput(1):.0f}, {run.throughput(3):.0f}")
    nodes = {name: worker["node"] for name, worker in workers.items()}
    assert {nodes.pop("learner-0"), nodes.pop("learner-1")} == {"head", "learner"}
    assert {nodes.pop("teacher-0"), nodes.pop("teacher-1")} == {"teachers"}
    assert sorted(nodes.values()) == ["rollout-a", "rollout-a", "rollout-b"]
    assert nodes["rollout-0"] != nodes["rollout-1"], "rollout workers are spread"
    started = {row["worker"]: row["node"] for row in run.events("worker_started")}
    engines = {name: worker["node"] for name, worker in workers.items() if "learner" not in name}
    assert started == engines
