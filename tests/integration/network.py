"""Several machines in one test: nodes with network, processes and /tmp/ray of their own, joined by a bridge.

Only in a test marked `isolated`: its own network namespace is the switch. A cable can be cut and healed, a node
can lose its power, and its Ray comes back by itself, as systemd or Kubernetes would bring it back.
"""

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.integration.namespaces import INSIDE, ROOT, NodeOptions, until

SUBNET = "10.78.0"
SWITCH = f"{SUBNET}.254"
PORT = 6379
ENTER = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--uts"]
# bash stays as the first process of the node and reaps what others leave. Without name servers, looking for one
# fails at once.
BOOT = """
set -e
hostname "$0"
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind /dev/null /etc/resolv.conf
sleep infinity & wait
"""
# Ray on a node ends when one of its processes does; then it is started again.
KEEP_UP = "while true; do {line} >> {log} 2>&1; echo restarted >> {log}; sleep 1; done"


class Node:
    """One machine on the bridge."""

    def __init__(self, name: str, number: int, log: Path) -> None:
        self.name = name
        self.address = f"{SUBNET}.{number}"
        self.log = log
        self._port = f"port{number}"
        self._boot()

    def _boot(self) -> None:
        self._holder = subprocess.Popen([*ENTER, "bash", "-c", BOOT, self.name])
        holder = psutil.Process(self._holder.pid)
        until(lambda: holder.children() and holder.children()[0].children(), f"the start of {self.name}")
        first = holder.children()[0].pid
        self._space = os.readlink(f"/proc/{first}/ns/pid")
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(first))
        _ip("link", "set", self._port, "master", "switch", "up")
        self._enter = ["nsenter", "--target", str(first), "--net", "--pid", "--mount", "--uts"]
        for line in (
            "ip link set lo up",
            f"ip address add {self.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {SWITCH}",
        ):
            subprocess.run([*self._enter, *line.split()], check=True)

    def start(self, line: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on this machine; it ends with the machine, not with the returned process."""
        return subprocess.Popen([*self._enter, *line], cwd=ROOT, **options)

    def keep_up(self, line: Sequence[str], **environment: str) -> None:
        """Start a program that is started again a second after its end."""
        loop = KEEP_UP.format(line=shlex.join(line), log=shlex.quote(str(self.log)))
        self.start(["bash", "-c", loop], env=os.environ | environment)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """What runs on this machine and has this in its command line."""
        found = []
        for each in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, FileNotFoundError):  # it ended meanwhile
                if os.readlink(f"/proc/{each.pid}/ns/pid") == self._space and name in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def kill(self, name: str) -> None:
        """Kill -9 the one process that has this in its command line."""
        [process] = self.processes(name)
        process.kill()

    def cut(self) -> None:
        """Pull the cable out."""
        _ip("link", "set", self._port, "down")

    def heal(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self._port, "up")

    def power_off(self) -> None:
        """End every process at once."""
        self._holder.kill()
        self._holder.wait()
        _remove_link(self._port)

    def power_on(self) -> None:
        """Start again with an empty /tmp and no process."""
        self._boot()


@contextmanager
def network(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Node]]:
    """Machines of these names, all connected."""
    assert INSIDE in os.environ, "machines are only made in namespaces of their own"
    Path("/tmp/ray").mkdir(exist_ok=True)
    _ip("link", "add", "switch", "type", "bridge")
    _ip("address", "add", f"{SWITCH}/24", "dev", "switch")
    _ip("link", "set", "switch", "up")
    nodes: dict[str, Node] = {}
    try:
        for number, name in enumerate(names, start=1):
            nodes[name] = Node(name, number, folder / f"{name}.log")
        yield nodes
    finally:
        for node in nodes.values():
            node.power_off()
        _ip("link", "delete", "switch")


class RayNetwork:
    """Ray on machines of a network; the first one is the head. Every machine restarts its Ray when it ends."""

    def __init__(self, folder: Path, nodes: Mapping[str, Node], **environment: str) -> None:
        """`environment`: what every Ray process gets, such as RAY_health_check_period_ms."""
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.nodes = nodes
        self.head = next(iter(nodes.values()))
        self.address = f"{self.head.address}:{PORT}"
        self.environment = {
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)},
            **{"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1", **environment},
        }

    def start(self, name: str, options: NodeOptions) -> None:
        """Start Ray on a machine and wait until it is up."""
        node = self.nodes[name]
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        where = where if node is self.head else [f"--address={self.address}"]
        resources = json.dumps(dict(options.custom or {}))
        line = [str(Path(sys.executable).parent / "ray"), "start", *where, f"--node-name={name}"]
        line += [f"--node-ip-address={node.address}", f"--num-cpus={options.num_cpus}", "--num-gpus=0"]
        line += [f"--resources={resources}", "--object-store-memory=150000000", "--disable-usage-stats", "--block"]
        node.log.unlink(missing_ok=True)
        node.keep_up(line, **self.environment)
        until(lambda: node.log.is_file() and "will now block" in node.log.read_text(), f"Ray on {name}")

    def run(self, name: str, line: Sequence[str], log: Path) -> subprocess.Popen[Any]:
        """Start a driver on a machine."""
        with log.open("ab") as output:
            environment = os.environ | self.environment
            return self.nodes[name].start(line, env=environment, stdout=output, stderr=subprocess.STDOUT)


def _remove_link(name: str) -> None:
    """Remove a link whose other end was in a namespace that ends: the kernel does it too, sooner or later."""
    done = subprocess.run(["ip", "link", "delete", name], capture_output=True, text=True)
    assert done.returncode == 0 or "Cannot find device" in done.stderr, done.stderr


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
