"""Makes the checks of nodes and disk, with what the nodes say of themselves or what this machine has."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.capacity import this_machine
from cluster.connection import is_local
from cluster.nodes import Node
from cluster.placement import Demand
from commands.preflight.memory import GIB, needs_of
from commands.preflight.nodes import (
    NodeFacts,
    describe_node,
    disk_findings,
    existing_parent,
    memory_findings,
    needed_paths,
    path_findings,
    placement_findings,
    roles_by_node,
)
from inputs.models import Shape
from learner.served import signal_kind
from records.checkpoint_store import CheckpointStore
from records.run_folder import RunFolder
from settings.checks import Checks
from settings.run import RunConfig


def check_disk(config: RunConfig, folder: RunFolder, student: Shape | None, checks: Checks) -> None:
    """Check the disks that this machine writes to; RefusedError unless errors are collected."""
    start = time.monotonic()
    store = CheckpointStore.of(config, folder)
    findings, details = disk_findings(config, student, run_folder=folder.path, checkpoints=store.local)
    checks.add("disk", findings, details, seconds=time.monotonic() - start)


def check_nodes(config: RunConfig, demands: Sequence[Demand], shapes: Mapping[str, Shape], checks: Checks) -> None:
    """Check files and memory of every node that gets workers: of the connected Ray, or this machine for its own.

    RefusedError unless errors are collected. Sizes of models are in `shapes`, by role.
    """
    start = time.monotonic()
    local = is_local(config.cluster)
    nodes = [this_machine(config)] if local else _nodes_of_ray()
    facts = _facts_here(config, nodes) if local else _facts_of_ray(config)
    roles = roles_by_node(demands, nodes)
    checks.add("placement", placement_findings(demands, roles))
    findings, details = path_findings(facts, roles, runs_path=str(existing_parent(Path(config.runs_path))))
    checks.add("paths", findings, details, seconds=time.monotonic() - start)
    needs = needs_of(config, shapes, holds_teacher_head=signal_kind(config) == "full")
    store = config.cluster.object_store_gib * GIB if local else 0.0
    findings, details = memory_findings(config, needs, roles, facts, object_store_bytes=store)
    checks.add("memory", findings, details)


def paths_of(config: RunConfig) -> list[str]:
    """Files and folders that the workers of a run read: the models."""
    paths = [config.student.model_path, *(each.model_path for each in config.teacher_of_role.values())]
    return needed_paths([*paths, *([config.reference.model_path] if config.reference.model_path else [])])


def _facts_here(config: RunConfig, nodes: Sequence[Node]) -> dict[str, NodeFacts]:
    facts = describe_node(paths_of(config), str(existing_parent(Path(config.runs_path))))
    return {node.name: facts for node in nodes}


def _nodes_of_ray() -> list[Node]:
    from cluster.reservation import nodes_now

    return nodes_now()


def _facts_of_ray(config: RunConfig) -> dict[str, NodeFacts]:
    """Ask every node, with a file beside the run folder that they must see."""
    from cluster.ray_actors import on_every_node

    runs_path = existing_parent(Path(config.runs_path))
    descriptor, mark = tempfile.mkstemp(prefix=".preflight-", dir=runs_path)
    try:
        paths = [*paths_of(config), mark]
        timeout_s = config.preflight.node_timeout_s
        return on_every_node(describe_node, paths, str(runs_path), timeout_s=timeout_s)
    finally:
        os.close(descriptor)
        os.remove(mark)
