"""Tests in private namespaces, and Ray clusters of several nodes in them.

A test marked `isolated` runs in network, process and mount namespaces of its own: it sees only a loopback device,
its own processes, and an empty /tmp/ray. All of it ends with the test. That takes root and Linux's `unshare`.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "POWEROPD_TEST_IS_ISOLATED"
ENTER = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount"]
HEAD = "10.77.0.1"
# A default route lets Ray find its address; without name servers, looking for one fails at once. The shell stays
# as the first process of its namespace, which has to reap what others leave.
SETUP = f"""
set -e
ip link set lo up
for i in 1 2 3 4 5 6; do ip address add 10.77.0.$i/32 dev lo; done
ip route add default dev lo src {HEAD}
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs -o size=4g tmpfs /dev/shm
mount --bind /dev/null /etc/resolv.conf
"$@" && exit 0 || exit 1
"""


def run_isolated(test_id: str) -> None:
    """Run one test with pytest in new namespaces; fails, or skips, as it does."""
    if os.geteuid() != 0 or subprocess.run([*ENTER, "true"], capture_output=True).returncode:
        pytest.skip("private namespaces need root and unshare")
    with tempfile.TemporaryDirectory() as folder:
        python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest"]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))
        }
        done = subprocess.run(
            [*ENTER, "bash", "-c", SETUP, "_", *python, test_id],
            cwd=ROOT,
            env=environment | {INSIDE: "1"},
            capture_output=True,
            text=True,
        )
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0, "the test failed in its namespaces, see the output"


@dataclass(frozen=True)
class NodeOptions:
    """Resources of one node."""

    num_cpus: int = 2
    num_gpus: int = 0
    custom: Mapping[str, float] | None = None


@contextmanager
def ray_nodes(folder: Path, nodes: Mapping[str, NodeOptions], *, with_jobs: bool = False) -> Iterator[str]:
    """Start Ray by hand, with a token, on nodes of these names (the first is the head); gives the address.

    The token is set for this process and its children. Only in a test that is isolated.
    """
    assert INSIDE in os.environ, "a cluster by hand is only started in namespaces of its own"
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    address, processes = f"{HEAD}:6379", list[subprocess.Popen[Any]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", "" if with_jobs else str(ROOT))  # a job brings its own
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        try:
            for number, (name, options) in enumerate(nodes.items(), start=1):
                head = ["--head", "--port=6379", f"--include-dashboard={with_jobs}", f"--dashboard-host={HEAD}"]
                line = [*(head if number == 1 else [f"--address={address}"]), f"--node-name={name}"]
                line += [f"--node-ip-address=10.77.0.{number}", f"--dashboard-agent-listen-port={52400 + number}"]
                line += [f"--num-cpus={options.num_cpus}", f"--num-gpus={options.num_gpus}"]
                line += [
                    f"--resources={json.dumps(dict(options.custom or {}))}",
                    "--object-store-memory=200000000",
                ]
                with (folder / f"{name}.log").open("w") as log:
                    command = ["ray", "start", *line, "--disable-usage-stats", "--block"]
                    processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
                # One after the other: raylets that start together on one machine get in each other's way.
                until(partial(_is_up, Path(log.name)), f"the start of node {name}", processes[-1])
            yield address
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(60)


def _is_up(log: Path) -> bool:
    return "will now block" in log.read_text()


@contextmanager
def driver(address: str, num_nodes: int) -> Iterator[None]:
    """Connect this process to a cluster and wait until so many nodes are there."""
    ray.init(address=address, namespace="poweropd", logging_level=logging.ERROR, log_to_driver=False)
    try:
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == num_nodes, f"{num_nodes} nodes")
        yield
    finally:
        ray.shutdown()


def until(
    condition: Callable[[], Any], what: str, process: subprocess.Popen[Any] | None = None, timeout_s: float = 300
) -> None:
    """Wait for a condition, while the process is running if one is given."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"the process ended before {what}"
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.2)
