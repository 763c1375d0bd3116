"""Ray's autoscaler starts and ends the nodes of each group of a live run, from none at all."""

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.autoscaling import grows
from cluster.capacity import ray_cluster
from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import named_actor
from controller.remote_control import remote_control
from tests.integration.namespaces import HEAD, ROOT, until
from tests.integration.node_groups import SCRIPT
from tests.simulated import EngineBehaviour
from tests.simulated_run import FaultyRun, eventually, run_config, simulated_run

pytestmark = [pytest.mark.timeout(600), pytest.mark.isolated, pytest.mark.slow]

GROUPS = ("rollout", "teacher", "learner")
BATCH, IDLE_S, PATIENCE_S = 8, 6.0, 120.0
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Ray's own provider for tests: its nodes are processes of this machine."""
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""What it calls the head."""
AUTOSCALER = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def autoscaling_config() -> dict[str, Any]:
    """No node but the head, and up to three of each group, with capacity for one worker each."""
    sizes = {"CPU": 1, "object_store_memory": 100_000_000}
    types: dict[str, Any] = {
        group: {"resources": {**sizes, group: 1}, "node_config": {}, "min_workers": 0, "max_workers": 3}
        for group in GROUPS
    }
    types[HEAD_TYPE] = {"resources": {"head": 1}, "node_config": {}, "max_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        **{"cluster_name": "fake", "max_workers": 9, "upscaling_speed": 1.0, "idle_timeout_minutes": IDLE_S / 60},
        "provider": {
            **{"type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "disable_node_updaters": True},
            **{"disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD_ID},
        },
        **{
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            "auth": {},
            "docker": {},
            "file_mounts": {},
        },
        **{"cluster_synced_files": [], "file_mounts_sync_continuously": False},
        **{"rsync_exclude": [], "rsync_filter": []},
        **{f"{each}_commands": [] for each in commands},
    }


@contextmanager
def growing_cluster(folder: Path) -> Iterator[str]:
    """A head with Ray's autoscaler; gives the address."""
    token, settings, log = (folder / name for name in ("token", "autoscaler.yaml", "head.log"))
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    settings.write_text(json.dumps(autoscaling_config()))
    with pytest.MonkeyPatch.context() as patch:
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)}
        given |= {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin"}
        for name, value in given.items():
            patch.setenv(name, value)
        with log.open("w") as output:
            line = [SCRIPT, "head", f"--node-ip-address={HEAD}", f"--autoscaling-config={settings}"]
            process = subprocess.Popen(
                ["env", *(f"{name}={value}" for name, value in AUTOSCALER.items()), *line],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            until(lambda: "will now block" in log.read_text(), "the start of the head", process)
            yield f"{HEAD}:6379"
        finally:
            process.terminate()
            process.wait(60)
            for path in (log, *Path("/tmp/ray/session_latest/logs").glob("monitor.*")):
                print(f"--- {path.name}\n{path.read_text()[-3000:]}")


def nodes() -> Counter[str]:
    """How many nodes of each group are alive."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return Counter(group for resources in alive for group in GROUPS if group in resources)


def check_named_actors_are_here() -> None:
    """The actor by which commands reach a run ends with no node but the driver's, also where that has no CPUs."""
    here = ray.get_runtime_context().get_node_id()
    actors = [named_actor(Somewhere, name=f"named-{number}", args=()) for number in range(8)]
    assert ray.get([actor.node_id.remote() for actor in actors], timeout=60) == [here] * len(actors)


class Somewhere:
    """An actor that knows its node."""

    async def node_id(self) -> str:
        """As Ray calls it."""
        return ray.get_runtime_context().get_node_id()


async def follow(run: FaultyRun, role: str) -> None:
    """Scale a pool up and down by command; its nodes follow, no others do, and the run continues."""
    for count in (2, 1):
        line = [sys.executable, "launch.py", "scale", "--run=simulated", f"--runs-path={run.folder.path.parent}"]
        process = await asyncio.create_subprocess_exec(*line, f"--{role}={count}", cwd=ROOT)
        assert await process.wait() == 0
        wanted = Counter(GROUPS) | Counter({role: count})
        seen = list[Counter[str]]()

        def followed(wanted: Counter[str] = wanted, seen: list[Counter[str]] = seen) -> bool:
            seen.append(nodes())
            return seen[-1] == wanted and len(run.pools[role].healthy) == wanted[role]

        step, asked = run.pipeline.slots.version, time.monotonic()
        await eventually(followed, timeout_s=PATIENCE_S)
        print(f"{role} -> {count}: nodes and workers followed after {time.monotonic() - asked:.1f} s")
        assert {each: number for counts in seen for each, number in counts.items() if each != role} == {
            group: 1 for group in GROUPS if group != role
        }
        await eventually(lambda step=step: run.pipeline.slots.version >= step + 3)


def test_nodes_of_each_group_come_and_go_with_the_workers_of_a_run_that_loses_nothing(tmp_path: Path) -> None:
    groups = {role: {"resources": {"num_cpus": 0.1, "custom": {role: 1}}} for role in GROUPS}

    async def scenario() -> FaultyRun:
        engines = [EngineBehaviour(token_s=0.01)]
        assert not nodes()
        asked = time.monotonic()
        async with simulated_run(config, engines=engines, pool_class=Pool) as run:
            assert nodes() == Counter(GROUPS)
            print(f"all workers, on new nodes, have started after {time.monotonic() - asked:.1f} s")
            check_named_actors_are_here()
            stop = run.pipeline.stop
            async with remote_control(run.pipeline.context, is_local=False, stop=stop) as control:
                control.attach(run.pipeline)
                running = asyncio.create_task(run.pipeline.run())
                for role in ("rollout", "teacher"):
                    await follow(run, role)
                stop()
                await asyncio.wait_for(running, 60)
        return run

    with growing_cluster(tmp_path) as address:
        given = {"address": address, "placement_timeout_s": PATIENCE_S}
        config = run_config(tmp_path, max_steps=100_000, batch_size=BATCH, cluster=given, **groups)
        fixed = config.model_copy(update={"cluster": config.cluster.model_copy(update={"grows": False})})
        with (
            pytest.raises(ValueError, match="no node can ever hold one learner worker"),
            ray_cluster(fixed, plan(fixed)),
        ):
            pass
        with ray_cluster(config, plan(config)):
            assert grows(config.cluster)
            run = asyncio.run(scenario())
    slots = sorted(run.trained_slots())
    assert len(slots) == len(set(slots)) == BATCH * run.pipeline.slots.version
    assert not run.events("worker_died") + run.events("worker_not_started")
