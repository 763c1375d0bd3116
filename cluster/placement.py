"""Where workers go: what each role asks of Ray, and whether a cluster can give it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.config import ResourcesConfig, RunConfig
from cluster.teachers import field_of

Bundle = dict[str, float]


@dataclass(frozen=True)
class Demand:
    """`count` workers of a role, each in a placement group of one `bundle`."""

    role: str
    count: int
    bundle: Bundle

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in sorted(self.bundle.items()))
        return f"{self.role}: {self.count} x ({each})"


def plan(config: RunConfig) -> list[Demand]:
    """What the run asks of the cluster, in the order in which it is placed."""
    engines = {**config.scorers, "rollout": config.rollout}
    return [
        Demand("learner", config.learner.num_workers, bundle("learner", config.learner.resources)),
        *(
            Demand(role, each.num_workers, bundle(role, each.resources, each.engine.tensor_parallel_size))
            for role, each in engines.items()
        ),
    ]


def bundle(role: str, resources: ResourcesConfig, tensor_parallel_size: int = 1) -> Bundle:
    """The placement group bundle of one worker: its devices are reserved together."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus * tensor_parallel_size, **resources.custom}
    given = {name: amount for name, amount in amounts.items() if amount > 0}
    if not given:
        field = field_of(role)
        raise ValueError(f"{field}.resources must reserve something, got nothing (nearest valid: num_cpus 0.01)")
    return given


def check_some_node_fits(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """ValueError naming the role if one of its workers is larger than every node: waiting cannot help."""
    for demand in demands:
        if not any(_fits(demand.bundle, node) for node in nodes):
            largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in demand.bundle}
            short = [name for name, amount in demand.bundle.items() if largest[name] < amount] or sorted(
                demand.bundle
            )
            parts = ", ".join(
                f"{demand.bundle[n]:g} {n} wanted, the largest node has {largest[n]:g}" for n in short
            )
            raise ValueError(
                f"{field_of(demand.role)}.resources: no node can ever hold one {demand.role} worker: {parts}"
            )


def check_all_fit(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """ValueError saying what is missing if the nodes, all free, cannot hold every worker together."""
    check_some_node_fits(demands, nodes)
    free = [dict(node) for node in nodes]
    for demand in demands:
        for placed in range(demand.count):
            node = next((node for node in free if _fits(demand.bundle, node)), None)
            if node is None:
                raise ValueError(_shortage(demands, nodes, demand, placed))
            for name, amount in demand.bundle.items():
                node[name] = node[name] - amount


def _fits(bundle: Bundle, node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in bundle.items())


def _shortage(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], demand: Demand, placed: int) -> str:
    wanted: Counter[str] = Counter()
    for each in demands:
        wanted.update({name: amount * each.count for name, amount in each.bundle.items()})
    field = field_of(demand.role)
    has = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
    missing = [
        f"{wanted[n] - has[n]:g} {n} missing ({wanted[n]:g} wanted, {has[n]:g} there)"
        for n in wanted
        if wanted[n] > has[n]
    ]
    return (
        f"{field}.num_workers: the cluster cannot place this run: {', '.join(missing) or 'no node has room'}"
        f"; wanted {'; '.join(map(str, demands))} (nearest valid {field}.num_workers here: {placed})"
    )
