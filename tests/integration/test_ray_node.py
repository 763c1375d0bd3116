"""docker/ray_node.sh on two machines: it waits, joins, is refused, and leaves."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.command_line import BAD_INPUT
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network import network
from tests.integration.node_groups import SCRIPT, NodeGroups

pytestmark = [pytest.mark.timeout(300), pytest.mark.isolated]

ASK = """
import json, ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
print(json.dumps([node for node in ray.nodes() if node["Alive"]]))
"""


def nodes(ray: NodeGroups) -> dict[str, dict[str, Any]]:
    """The nodes of the cluster by name."""
    done = ray.done("head", [sys.executable, "-c", ASK])
    assert done.returncode == 0, done.stderr
    return {node["NodeName"]: node for node in json.loads(done.stdout)}


def test_a_node_waits_for_its_head_joins_with_the_token_alone_and_leaves_when_told(tmp_path: Path) -> None:
    with network(tmp_path, ["head", "rollout"]) as machines:
        ray, log = NodeGroups(tmp_path, machines, POWEROPD_WORKERS="3"), tmp_path / "joining.log"
        process = ray.run("rollout", ray.line("rollout", NodeOptions(num_cpus=1)), log)
        until(lambda: f"waiting for the head at {ray.address}, " in log.read_text(), "its word", process)
        ray.start("head", NodeOptions(num_cpus=0))
        until(lambda: "will now block" in log.read_text(), "the node", process)
        there = nodes(ray)
        assert {name: node["Resources"].get("CPU", 0) for name, node in there.items()} == {"head": 0, "rollout": 1}
        assert there["head"]["Resources"]["head"] == 1
        assert there["rollout"]["Resources"]["rollout"] == 3

        stranger = ray.done("rollout", [SCRIPT, "rollout"], RAY_AUTH_TOKEN="0" * 64)
        refused = f"ray_node: the head at {ray.address} does not take the token of this node\n"
        assert (stranger.returncode, stranger.stderr) == (BAD_INPUT, refused)

        [start] = [each for each in machines["rollout"].processes("ray start") if each.name() != "nsenter"]
        start.terminate()
        assert process.wait(30) == 1
        assert list(nodes(ray)) == ["head"]
