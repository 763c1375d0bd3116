"""The Ray that a run uses, and whether this machine can hold its workers."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import psutil

from cluster.connection import connected, is_local
from cluster.nodes import Node
from cluster.placement import Demand, check_all_fit, check_could_fit
from settings.run import RunConfig


def this_machine(config: RunConfig) -> Node:
    """This machine as the node that a Ray of its own would be."""
    memory = psutil.virtual_memory().available * 0.7  # what Ray takes
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    total = {"CPU": _num_cpus(config), "GPU": float(num_gpus), "memory": memory}
    return Node("this machine", {name: amount for name, amount in total.items() if amount})


def check_local_machine(config: RunConfig, demands: Sequence[Demand]) -> None:
    """ValueError if a Ray of this machine's own, which does not grow, could not hold the workers' CPUs."""
    if is_local(config.cluster):
        only_cpus = [
            replace(d, bundle={"CPU": d.bundle["CPU"]}, further_stages=()) for d in demands if "CPU" in d.bundle
        ]
        check_all_fit(only_cpus, [{"CPU": _num_cpus(config)}])


def _num_cpus(config: RunConfig) -> float:
    return float(config.cluster.num_cpus or os.cpu_count() or 1)


def ray_cluster(config: RunConfig, demands: Sequence[Demand]) -> AbstractContextManager[None]:
    """Connect to the cluster, or start a local one, and check that the workers fit; a context manager."""

    def check(nodes: list[dict[str, float]], is_local: bool) -> None:
        from cluster.autoscaling import grows

        check_could_fit(demands, nodes, is_local=is_local, grows=not is_local and grows(config.cluster))

    return connected(config.cluster, check)
