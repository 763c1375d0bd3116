"""A Ray cluster of node groups on machines of their own, started by docker/ray_node.sh as its users start it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.namespaces import ROOT, NodeOptions, until
from tests.integration.network import Node, RayNetwork, network

SCRIPT = str(ROOT / "docker" / "ray_node.sh")
LAUNCH = ["env", f"--chdir={ROOT}", sys.executable, "launch.py"]
"""A program on another machine starts in its root folder."""


class NodeGroups(RayNetwork):
    """Machines of which each is named after its group, or after it and a number: head, rollout, teacher-1."""

    def __init__(self, folder: Path, nodes: Mapping[str, Node], **environment: str) -> None:
        super().__init__(folder, nodes, **{"PYTHONPATH": "", **environment})  # a job brings its own code
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "POWEROPD_HEAD": self.address,
            "POWEROPD_DASHBOARD_HOST": self.head.address,
        }
        self.jobs = f"http://{self.head.address}:8265"

    def line(self, name: str, options: NodeOptions) -> list[str]:
        """The command that starts a node; all but the group is owed to this small machine."""
        sizes = [f"--num-cpus={options.num_cpus}", "--num-gpus=0", "--object-store-memory=150000000"]
        return [SCRIPT, name.partition("-")[0], f"--node-ip-address={self.nodes[name].address}", *sizes]

    def start(self, name: str, options: NodeOptions) -> None:
        """Start Ray on a machine, restarted whenever it ends, and wait until it is up."""
        node = self.nodes[name]
        node.log.unlink(missing_ok=True)
        node.keep_up(self.line(name, options), **self.environment)
        until(lambda: node.log.is_file() and "will now block" in node.log.read_text(), f"Ray on {name}")

    def done(self, name: str, line: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program on a machine to its end."""
        given = {"env": os.environ | self.environment | environment, "text": True}
        process = self.nodes[name].start(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)
        out, err = process.communicate(timeout=150)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def launch(self, name: str, *arguments: str) -> str:
        """The output of `launch.py ...` on a machine, which must succeed."""
        done = self.done(name, [*LAUNCH, *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def outside(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """Start `launch.py ...` on a machine that is no node, but has the token."""
        environment = os.environ | self.environment | {"RAY_API_SERVER_ADDRESS": self.jobs}
        return subprocess.Popen([*LAUNCH, *arguments], env=environment, **options)

    def submitted(self, *arguments: str) -> str:
        """The output of `launch.py submit ...` about a run, from outside, which must succeed."""
        process = self.outside("submit", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out + err


@contextmanager
def node_groups(folder: Path, nodes: Mapping[str, NodeOptions], **environment: str) -> Iterator[NodeGroups]:
    """A cluster of these machines, the first of which is its head; all Ray processes get `environment`."""
    with network(folder, list(nodes)) as machines:
        ray = NodeGroups(folder, machines, **environment)
        try:
            for name, options in nodes.items():
                ray.start(name, options)
            yield ray
        finally:
            for node in machines.values():
                print(f"--- {node.log.name}\n{node.log.read_text()[-3000:] if node.log.is_file() else 'nothing'}")
