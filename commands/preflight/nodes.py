"""Checks of the nodes: whether they reach what a run reads and writes, and whether its workers fit into memory."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.nodes import Node
from cluster.placement import Demand, place_all
from commands.preflight.memory import GIB, Need, gib
from commands.preflight.node_facts import NodeFacts
from settings.checks import Finding
from settings.run import RunConfig
from settings.teachers import field_of

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
    """Which workers have no room now; they wait for it, or for nodes that come."""
    placed = sum(roles.values(), Counter[str]())
    waiting = {
        each.role: len(each.groups) * len(each.groups[0]) - placed[each.role]
        for each in demands
        if placed[each.role] < len(each.groups) * len(each.groups[0])
    }
    if not waiting:
        return [Finding("ok", "; ".join(map(str, demands)))]
    listed = ", ".join(f"{num} of {role}" for role, num in waiting.items())
    return [Finding("warning", f"there is no room now for {listed}", "wait for room, or start fewer workers")]


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
            field = f"{_section(need.role)}.engine.kv_cache_gib"
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
    remedy = f"most is for {_section(largest)}: change {_fields(largest)}, or start fewer workers"
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
                f"{_section(need.role)}: one worker needs about {gib(need.device_bytes)} per device, but may use "
                f"{gib(size * share)} of the {gib(size)} of a GPU of node {name}",
                f"change {_fields(need.role)}, or take a larger GPU",
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


def _section(role: str) -> str:
    return field_of(role)


def _fields(role: str) -> str:
    return FIELDS.get(role, ENGINE_FIELDS)
