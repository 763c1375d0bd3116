"""A simulated run on machines that a test can cut off or switch off, and what it leaves."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.integration.namespaces import NodeOptions, until
from tests.integration.network import Node, RayNetwork, network

BATCH = 8


class NetworkRun:
    """A simulated run of `steps` steps whose driver is on one of the nodes."""

    def __init__(self, ray: RayNetwork, path: Path, *, driver: str, steps: int) -> None:
        self.ray = ray
        self.path = path
        self.folder = RunFolder(path / "simulated")
        self.steps = steps
        self._driver = driver

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The machines by name."""
        return self.ray.nodes

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[Any]]:
        """The run while it is running; it resumes if there is something to resume."""
        log = self.path / "driver.log"
        line = [sys.executable, "-m", "tests.integration.simulated_driver", str(self.path), self.ray.address]
        try:
            yield self.ray.run(self._driver, [*line, str(self.steps)], log)
        finally:
            print(log.read_text()[-4000:])

    def step(self) -> int:
        """The newest step that counts."""
        return max(valid_ledger(self.folder.ledger), default=0)

    def until_step(self, step: int, process: subprocess.Popen[Any]) -> None:
        """Wait while the run is running."""
        until(lambda: self.step() >= step, f"step {step}", process)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [row for row in read_rows(self.folder.events) if row["event"] == kind]

    def check(self) -> None:
        """Every slot was trained exactly once."""
        ledger = valid_ledger(self.folder.ledger)
        assert sorted(ledger) == list(range(1, self.steps + 1))
        uids = [uid for uids in ledger.values() for uid in uids]
        assert sorted(int(uid.split("-")[0]) for uid in uids) == list(range(self.steps * BATCH))


@contextmanager
def network_run(
    path: Path, nodes: Mapping[str, NodeOptions], *, driver: str, steps: int, **environment: str
) -> Iterator[NetworkRun]:
    """Machines with Ray, the first one its head, and a run that was not started yet.

    Workers go to the nodes with the custom resources rollout (two workers), teacher and learner (one each).
    """
    with network(path, list(nodes)) as machines:
        ray = RayNetwork(path, machines, **environment)
        for name, options in nodes.items():
            ray.start(name, options)
        yield NetworkRun(ray, path, driver=driver, steps=steps)
