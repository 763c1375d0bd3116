"""Where workers go: what each role asks of Ray, and whether a cluster can give it."""

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.nodes import Bundle, Node, Strategy, place
from settings.engine import EngineConfig, ResourcesConfig
from settings.run import RunConfig
from settings.teachers import field_of

GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """`count` workers of a role, each in a placement group of its own, or all in one."""

    role: str
    count: int
    bundle: Bundle
    """What one worker reserves; of a pipeline, its first stage."""
    strategy: Strategy = "pack"
    """How workers are put on nodes, and how one group's bundles are."""
    further_stages: tuple[Bundle, ...] = ()
    """Pipeline stages of one worker that may lie on other nodes."""
    is_one_group: bool = False
    """True: all workers are placed together or not at all."""

    def __str__(self) -> str:
        stages = (
            f" + {len(self.further_stages)} x ({text_of(self.further_stages[0])})" if self.further_stages else ""
        )
        return f"{self.role}: {self.count} x ({text_of(self.bundle)}){stages}"

    @property
    def groups(self) -> Sequence[list[Bundle]]:
        """The bundles of each placement group."""
        if self.is_one_group:
            return [[self.bundle] * self.count]
        return [[self.bundle, *self.further_stages]] * self.count

    @property
    def group_strategy(self) -> Strategy:
        """How the bundles of one group are put on nodes: stages of a pipeline close together."""
        return "pack" if self.further_stages else self.strategy


def text_of(bundle: Mapping[str, float]) -> str:
    """The amounts for people: `2 CPU, 4 GPU, 8 GiB memory`."""
    return ", ".join(amount_text(name, amount) for name, amount in sorted(bundle.items()))


def amount_text(name: str, amount: float) -> str:
    """One amount for people; Ray counts memory in bytes."""
    return f"{amount / GIB:g} GiB memory" if name == "memory" else f"{amount:g} {name}"


def plan(config: RunConfig) -> list[Demand]:
    """What the run asks of the cluster, in the order in which it is placed; ValueError naming a wrong field."""
    learner, strategies = config.learner, config.cluster
    if learner.num_workers > 1 and 0 < learner.resources.num_gpus < 1:
        raise ValueError(
            f"learner.resources.num_gpus must be whole with several ranks, which cannot share one device, got "
            f"{learner.resources.num_gpus:g} (nearest valid: 1)"
        )
    ranks = Demand(
        *("learner", learner.num_workers, bundle("learner", learner.resources)),
        strategy=strategies.learner_strategy,
        is_one_group=True,
    )
    scorers = [
        engine_demand(role, each.num_workers, each.resources, each.engine, strategies.teacher_strategy)
        for role, each in config.scorers.items()
    ]
    rollout = config.rollout
    if rollout.engine.pipeline_parallel_size > 1:
        raise ValueError(
            f"rollout.engine.pipeline_parallel_size must be 1, got {rollout.engine.pipeline_parallel_size}: new "
            f"weights reach the processes of an engine through the shared memory of one node"
        )
    students = engine_demand(
        "rollout", rollout.num_workers, rollout.resources, rollout.engine, strategies.rollout_strategy
    )
    num_evaluation = config.evaluation.num_workers
    evaluation = [replace(students, role="evaluation", count=num_evaluation)] if num_evaluation else []
    return [ranks, *scorers, students, *evaluation]


def engine_demand(
    role: str, count: int, resources: ResourcesConfig, engine: EngineConfig, strategy: Strategy
) -> Demand:
    """What `count` engines ask for: the devices of a stage on one node, its stages on one node or several."""
    tensor, stages = engine.tensor_parallel_size, engine.pipeline_parallel_size
    first = bundle(role, resources, tensor)
    field = f"{field_of(role)}.resources.num_gpus"
    if tensor * stages > 1 and 0 < resources.num_gpus != 1:
        raise ValueError(f"{field} must be 1 where an engine has several devices, got {resources.num_gpus:g}")
    if stages > 1 and resources.num_gpus == 0:
        raise ValueError(f"{field} must be 1 with engine.pipeline_parallel_size {stages}, got 0")
    further = {"GPU": float(tensor), **resources.custom}
    return Demand(role, count, first, strategy=strategy, further_stages=(further,) * (stages - 1))


def bundle(role: str, resources: ResourcesConfig, tensor_parallel_size: int = 1) -> Bundle:
    """The placement group bundle of one worker: its devices are reserved together."""
    field = f"{field_of(role)}.resources"
    built_in = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_gib", "object_store_memory": ""}
    if wrong := next((name for name in resources.custom if name in built_in), None):
        raise ValueError(
            f"{field}.custom: {wrong} is no custom resource (nearest valid: {built_in[wrong] or 'none'})"
        )
    if resources.num_gpus > 1 and resources.num_gpus % 1:
        raise ValueError(f"{field}.num_gpus must be whole above 1, got {resources.num_gpus:g}")
    amounts = {
        "CPU": resources.num_cpus,
        "GPU": resources.num_gpus * tensor_parallel_size,
        "memory": float(int(resources.memory_gib * GIB)),
        **resources.custom,
    }
    given = {name: amount for name, amount in amounts.items() if amount > 0}
    if not given:
        raise ValueError(f"{field} must reserve something, got nothing (nearest valid: num_cpus 0.01)")
    return given


def check_could_fit(
    demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], *, is_local: bool, grows: bool
) -> None:
    """ValueError saying what is missing if the workers could never be placed.

    The one node of a local Ray has to hold all of them together, some node of a cluster each by itself. Which
    nodes may yet come to a cluster that grows is not known: everything is waited for there.
    """
    if is_local:
        check_all_fit(demands, nodes)
    elif not grows:
        try:
            check_some_node_fits(demands, nodes)
        except ValueError as error:
            raise ValueError(f"{error} (if nodes come when they are wanted, set cluster.grows true)") from error


def check_some_node_fits(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """ValueError naming the role if one of its workers is larger than every node: waiting cannot help."""
    for demand in demands:
        for each in {text_of(each): each for each in (demand.bundle, *demand.further_stages)}.values():
            _check_node_fits(each, nodes, f"{field_of(demand.role)}.resources", f"one {demand.role} worker")
        if demand.strategy == "strict_pack":
            together = {name: amount * demand.count for name, amount in demand.bundle.items()}
            _check_node_fits(together, nodes, "cluster.learner_strategy strict_pack", f"all {demand.count} ranks")


def _check_node_fits(bundle: Bundle, nodes: Sequence[Mapping[str, float]], field: str, what: str) -> None:
    if any(Node("", node).fits(bundle) for node in nodes):
        return
    largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in bundle}
    short = [name for name, amount in bundle.items() if largest[name] < amount] or sorted(bundle)
    parts = (f"{amount_text(n, bundle[n])} wanted, the largest node has {_number(n, largest[n])}" for n in short)
    raise ValueError(f"{field}: no node can ever hold {what}: {', '.join(parts)}")


def check_all_fit(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """ValueError saying what is missing if the nodes, all free, cannot hold every worker together."""
    check_some_node_fits(demands, nodes)
    free = [Node("", node) for node in nodes]
    for demand in demands:
        placed = place_all(demand, free)
        if placed < demand.count:
            raise ValueError(_shortage(demands, nodes, demand, _largest_group(demand, free) or placed))


def place_all(demand: Demand, nodes: Sequence[Node]) -> int:
    """Put the workers of a role on nodes as far as they fit, and their names into `Node.workers`; how many fit."""
    for number, group in enumerate(demand.groups):
        taken = place_worker(demand, group, nodes)
        if taken is None:
            return number
        for index, node in enumerate(taken):
            worker = f"{demand.role}-{index if demand.is_one_group else number}"
            node.workers.append(f"{worker} stage {index}" if demand.further_stages else worker)
    return demand.count


def place_worker(demand: Demand, group: Sequence[Bundle], nodes: Sequence[Node]) -> list[Node] | None:
    """Reserve one placement group of a role; the node of each of its bundles, or None if it does not fit."""
    num_placed = sum(node.num_of_role[demand.role] for node in nodes)
    num_left = 1 if demand.further_stages else max(1, demand.count - num_placed)
    return place(group, nodes, strategy=demand.group_strategy, role=demand.role, num_left=num_left)


def _largest_group(demand: Demand, nodes: Sequence[Node]) -> int:
    """How many workers a role whose workers are placed together could have; 0 if they are not."""
    counts = range(1, demand.count if demand.is_one_group else 1)
    is_too_many = lambda n: place_worker(demand, [demand.bundle] * n, copy.deepcopy(nodes)) is None  # noqa: E731
    return bisect_left(counts, True, key=is_too_many)


def _shortage(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], demand: Demand, placed: int) -> str:
    wanted: Counter[str] = Counter()
    for each in demands:
        for bundle in (each.bundle, *each.further_stages):
            wanted.update({name: amount * each.count for name, amount in bundle.items()})
    field = field_of(demand.role)
    has = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
    missing = [
        f"{amount_text(n, wanted[n] - has[n])} missing "
        f"({_number(n, wanted[n])} wanted, {_number(n, has[n])} there)"
        for n in wanted
        if wanted[n] > has[n]
    ]
    return (
        f"{field}.num_workers: the cluster cannot place this run: {', '.join(missing) or 'no node has capacity'}"
        f"; wanted {'; '.join(map(str, demands))}"
        + (f" (nearest valid {field}.num_workers here: {placed})" if placed else "")
    )


def _number(name: str, amount: float) -> str:
    return f"{amount / GIB:g}" if name == "memory" else f"{amount:g}"
