"""docker/ray_node.sh on two machines: it waits, joins, is refused, survives its head, and leaves."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from settings.exit_codes import BAD_INPUT
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network import network
from tests.integration.node_groups import SCRIPT, NodeGroups

pytestmark = [pytest.mark.timeout(300), pytest.mark.isolated, pytest.mark.slow]

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


def test_a_node_joins_with_the_token_alone_and_stays_through_a_restart_of_the_head_until_told_to_leave(
    tmp_path: Path,
) -> None:
    with network(tmp_path, ["head", "rollout"]) as machines:
        given = {"POWEROPD_WORKERS": "3", "POWEROPD_GCS_STORAGE": str(tmp_path / "gcs")}
        ray, log = NodeGroups(tmp_path, machines, **given), tmp_path / "joining.log"
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

        machines["head"].kill("gcs_server")
        until(lambda: "restarted" in machines["head"].log.read_text(), "the end of the head", process)
        until(lambda: machines["head"].log.read_text().count("will now block") == 2, "the head's return", process)
        again = nodes(ray)
        assert set(again) == {"head", "rollout"}
        assert again["rollout"]["NodeID"] == there["rollout"]["NodeID"]

        [start] = [each for each in machines["rollout"].processes("ray start") if each.name() != "nsenter"]
        start.terminate()
        assert process.wait(30) == 1
        assert list(nodes(ray)) == ["head"]
