"""Checks of the nodes: they reach what a run reads and writes, its workers fit into memory, its files on disk."""

import os
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.nodes import Node
from cluster.placement import Demand, place_all
from commands.preflight.memory import GIB, ITEM_BYTES, OPTIMIZER_BYTES, Need, gib
from inputs.models import Shape
from records.files import free_bytes
from settings.checks import Finding
from settings.run import RunConfig
from settings.teachers import field_of

SMI_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class NodeFacts:
    """A node as a task found it: its memory, its devices, and what it can reach."""

    memory_bytes: int
    """All of its memory."""
    available_bytes: int
    """What is free or can be freed now."""
    gpu_bytes: tuple[int, ...]
    """Memory of each GPU; empty without any, or without `nvidia-smi`."""
    missing: tuple[str, ...]
    """Those of the given paths that it does not have."""
    is_writable: bool
    """Whether run folders can be written there."""


def describe_node(paths: Sequence[str], runs_path: str) -> NodeFacts:
    """What this machine has; `paths` are files or folders that it must have."""
    memory = psutil.virtual_memory()
    missing = tuple(path for path in paths if not Path(path).exists())
    is_writable = Path(runs_path).is_dir() and os.access(runs_path, os.W_OK | os.X_OK)
    return NodeFacts(memory.total, memory.available, _gpu_bytes(), missing, is_writable)


def needed_paths(paths: Sequence[str]) -> list[str]:
    """Those of the paths that are files or folders here; the others are names on the hub."""
    return [path for path in dict.fromkeys(paths) if Path(path).exists()]


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _gpu_bytes() -> tuple[int, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    values = [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return tuple(int(value) * 2**20 for value in values if value.isdecimal())


FIELDS = {"learner": "learner.micro_batch_tokens, learner.activation_checkpointing, learner.zero_stage"}
"""What is changed to make a role smaller."""
ENGINE_FIELDS = "engine.max_num_batched_tokens, engine.kv_cache_gib, engine.tensor_parallel_size"


def roles_by_node(demands: Sequence[Demand], nodes: Sequence[Node]) -> dict[str, Counter[str]]:
    """How many workers of each role a plan puts on each node; of what fits now. The nodes are filled.

    Nodes of one name are taken for one: they are on the same machine.
    """
    for demand in demands:
        place_all(demand, nodes)
    roles: dict[str, Counter[str]] = {node.name: Counter() for node in nodes}
    for node in nodes:
        roles[node.name].update(worker.split(" ")[0].rpartition("-")[0] for worker in node.workers)
    return roles


def placement_findings(demands: Sequence[Demand], roles: Mapping[str, Counter[str]]) -> list[Finding]:
    """Which workers do not fit now; they wait for capacity, or for nodes that come."""
    placed = sum(roles.values(), Counter[str]())
    missing = {each.role: len(each.groups) * len(each.groups[0]) - placed[each.role] for each in demands}
    waiting = {role: num for role, num in missing.items() if num > 0}
    if not waiting:
        return [Finding("ok", "; ".join(map(str, demands)))]
    listed = ", ".join(f"{num} of {role}" for role, num in waiting.items())
    return [
        Finding("warning", f"there is no capacity now for {listed}", "wait for capacity, or start fewer workers")
    ]


def path_findings(
    facts: Mapping[str, NodeFacts], roles: Mapping[str, Counter[str]], *, runs_path: str
) -> tuple[list[Finding], dict[str, Any]]:
    """Whether every node that gets workers has the models and data, and can write the run folder."""
    findings = list[Finding]()
    remedy = "put it on storage that all nodes mount at the same path"
    for name, workers in roles.items():
        node = facts.get(name)
        if node is None:
            findings.append(Finding("warning", f"node {name} did not say what it has"))
            continue
        status = "error" if workers else "warning"
        findings += [Finding(status, f"node {name} has no {path}", remedy) for path in node.missing]
        if not node.is_writable:
            text = f"runs_path: node {name} cannot write {runs_path}"
            findings.append(Finding(status if workers["learner"] else "warning", text, remedy))
    details = {name: {"workers": dict(workers)} for name, workers in roles.items()}
    if not findings:
        findings = [Finding("ok", f"models, data and run folder are reachable from {', '.join(roles)}")]
    return findings, details


def memory_findings(
    config: RunConfig,
    needs: Sequence[Need],
    roles: Mapping[str, Counter[str]],
    facts: Mapping[str, NodeFacts],
    *,
    object_store_bytes: float = 0.0,
) -> tuple[list[Finding], dict[str, Any]]:
    """Compare estimates with the memory of nodes and devices; the arithmetic is in the details.

    `object_store_bytes`: of a Ray that is started for the run, on its only node.
    """
    findings = [*_unknown(config, needs), *_caches(needs)]
    by_role = {need.role: need for need in needs}
    known = {name: node for name, node in facts.items() if roles.get(name)}
    for name, node in known.items():
        findings += _host(config, name, node, roles[name], by_role, object_store_bytes)
        findings += _devices(config, name, node, roles[name], by_role)
    details: dict[str, Any] = {"arithmetic": [line for need in needs for line in need.lines()]}
    for name, node in known.items():
        needed = _host_bytes(roles[name], by_role) + object_store_bytes
        details[name] = {
            "needed_gib": round(needed / GIB, 3),
            "memory_gib": round(node.memory_bytes / GIB, 3),
            "available_gib": round(node.available_bytes / GIB, 3),
            "gpus_gib": [round(size / GIB, 3) for size in node.gpu_bytes],
        }
    if not findings:
        listed = "; ".join(_summary(name, details[name]) for name in known) or "no node is known yet"
        findings = [Finding("ok", listed)]
    return findings, details


def _summary(name: str, numbers: Mapping[str, Any]) -> str:
    gpus = numbers["gpus_gib"]
    devices = f", GPUs of {min(gpus):g} GiB" if gpus else ""
    return f"about {numbers['needed_gib']:.1f} of {numbers['memory_gib']:.1f} GiB on {name}{devices}"


def _unknown(config: RunConfig, needs: Sequence[Need]) -> Iterator[Finding]:
    missing = {"learner", "rollout", *config.scorers} - {need.role for need in needs}
    if missing:
        yield Finding("warning", f"the size of the models of {', '.join(sorted(missing))} is not known")


def _caches(needs: Sequence[Need]) -> Iterator[Finding]:
    """A cache of a given size must hold one sequence of full length."""
    for need in needs:
        if need.cache and need.cache[0].num_bytes > need.cache[1].num_bytes:
            least, given = need.cache
            field = f"{field_of(need.role)}.engine.kv_cache_gib"
            text = f"{field}: one sequence of full length needs {least}, but the cache is {gib(given.num_bytes)}"
            yield Finding("error", text, f"raise it to {least.num_bytes / GIB:.2g}, or lower engine.max_model_len")


def _host_bytes(workers: Mapping[str, int], needs: Mapping[str, Need]) -> float:
    return sum(num * needs[role].host_bytes for role, num in workers.items() if role in needs)


def _host(
    config: RunConfig,
    name: str,
    node: NodeFacts,
    workers: Mapping[str, int],
    needs: Mapping[str, Need],
    object_store_bytes: float,
) -> Iterator[Finding]:
    needed = _host_bytes(workers, needs) + object_store_bytes
    limit = node.memory_bytes * config.preflight.max_memory_fraction
    if needed <= min(limit, node.available_bytes):
        return
    sizes = {role: num * needs[role].host_bytes for role, num in workers.items() if role in needs}
    largest = max(sizes, key=lambda role: sizes[role])
    listed = ", ".join(f"{workers[role]} x {role} {gib(needs[role].host_bytes)}" for role in sizes)
    text = f"node {name}: the workers need about {gib(needed)} of memory ({listed})"
    remedy = (
        f"most is for {field_of(largest)}: change {FIELDS.get(largest, ENGINE_FIELDS)}, or start fewer workers"
    )
    if needed > limit:
        yield Finding("error", f"{text}, but it has {gib(node.memory_bytes)}", remedy)
    else:
        yield Finding("warning", f"{text}, and {gib(node.available_bytes)} are free now", remedy)


def _devices(
    config: RunConfig, name: str, node: NodeFacts, workers: Mapping[str, int], needs: Mapping[str, Need]
) -> Iterator[Finding]:
    on_gpu = [needs[role] for role, num in workers.items() if num and role in needs and needs[role].is_on_gpu]
    if on_gpu and not node.gpu_bytes:
        yield Finding("warning", f"node {name}: the memory of its GPUs is not known (nvidia-smi gives none)")
        return
    for need in on_gpu:
        size = min(node.gpu_bytes)
        share = _share(config, need)
        if need.device_bytes > size * share:
            yield Finding(
                "error",
                f"{field_of(need.role)}: one worker needs about {gib(need.device_bytes)} per device, but may use "
                f"{gib(size * share)} of the {gib(size)} of a GPU of node {name}",
                f"change {FIELDS.get(need.role, ENGINE_FIELDS)}, or take a larger GPU",
            )


def _share(config: RunConfig, need: Need) -> float:
    """Of a device: what an engine is told to use; the learner has what engines leave that share its device."""
    if need.role != "learner":
        return need.device_fraction
    if config.learner.resources.num_gpus >= 1:
        return config.preflight.max_memory_fraction
    sections = [config.rollout, *config.scorers.values()]
    sharing = [each for each in sections if 0 < each.resources.num_gpus < 1]
    taken = sum(each.engine.gpu_memory_fraction * each.num_workers for each in sharing)
    return max(0.0, config.preflight.max_memory_fraction - taken)


# -- disks: checkpoints, export and rows fit where they are written ------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Bytes that will be written into one folder."""

    path: Path
    num_bytes: float
    how: str


def disk_findings(
    config: RunConfig, student: Shape | None, *, run_folder: Path, checkpoints: Path
) -> tuple[list[Finding], dict[str, Any]]:
    """Whether the disks can hold what the run writes; the arithmetic is in the details."""
    wanted = wanted_of(config, student, run_folder=run_folder, checkpoints=checkpoints)
    by_disk: dict[int, list[Wanted]] = defaultdict(list)
    for each in wanted:
        by_disk[existing_parent(each.path).stat().st_dev].append(each)
    findings = list[Finding]()
    if student is None:
        text = "the student's size is not known, and so not the size of its checkpoints"
        findings.append(Finding("warning", text))
    lines = list[str]()
    for together in by_disk.values():
        place = together[0].path
        needed, free = sum(each.num_bytes for each in together), free_bytes(place)
        lines += [f"{each.path}: {gib(each.num_bytes)} = {each.how}" for each in together]
        text = f"{gib(needed)} needed, {gib(free)} free at {place}"
        if needed > free:
            remedy = "set checkpoint.keep lower, or runs_path or checkpoint.path to a larger disk"
            findings.append(Finding("error", f"runs_path: too little disk space: {text}", remedy))
        elif not findings:
            findings.append(Finding("ok", text))
    return findings, {"arithmetic": lines}


def wanted_of(config: RunConfig, student: Shape | None, *, run_folder: Path, checkpoints: Path) -> list[Wanted]:
    """What a run writes: checkpoints (one more than are kept, while it is written), export, rows."""
    rows = Wanted(run_folder, config.preflight.min_free_gib * GIB, "preflight.min_free_gib")
    if student is None:
        return [rows]
    item = ITEM_BYTES[config.learner.dtype]
    one = checkpoint_bytes(student, item_bytes=item)
    num = 2 if config.checkpoint.url is not None else config.checkpoint.keep + 1
    held = _size_of(checkpoints)
    less = f", less {gib(held)} that are there" if held else ""
    how = f"{num} checkpoints of {gib(one)} ({OPTIMIZER_BYTES} + {item} bytes per parameter){less}"
    return [
        Wanted(checkpoints, max(0.0, num * one - held), how),
        Wanted(run_folder, student.num_parameters * item, f"export, {item} bytes per parameter"),
        rows,
    ]


def checkpoint_bytes(student: Shape, *, item_bytes: int) -> float:
    """Bytes of one checkpoint: fp32 master weights and two moments, and the weights in the learner's dtype."""
    return student.num_parameters * (OPTIMIZER_BYTES + item_bytes)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
