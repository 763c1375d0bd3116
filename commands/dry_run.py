"""What a run would do with a cluster, printed and checked before anything starts: `launch.py train --dry-run`."""

from collections.abc import Iterator, Sequence

from cluster.capacity import ray_cluster, this_machine
from cluster.connection import is_local
from cluster.nodes import Node
from cluster.placement import Demand, place_all, text_of
from settings.load import to_yaml
from settings.run import RunConfig


def dry_run(config: RunConfig, demands: Sequence[Demand]) -> None:
    """Print the resolved configuration, and which workers would go to which node.

    The nodes are those of the cluster, if one is named, with what is free on them now; else this machine is
    planned for. ValueError if no node can ever hold one of the workers. Nothing is started or reserved.
    """
    print(to_yaml(config), end="")
    if is_local(config.cluster):
        nodes = [this_machine(config)]
    else:
        with ray_cluster(config, demands):
            from cluster.reservation import nodes_now

            nodes = nodes_now()
    print("\n".join(f"# {line}" for line in plan_lines(demands, nodes)))


def plan_lines(demands: Sequence[Demand], nodes: Sequence[Node]) -> Iterator[str]:
    """What each role asks for; then, node by node, who goes there and what stays free; then who has to wait."""
    yield "placement plan: one placement group per worker, one for all ranks of the learner"
    yield from (f"  {demand}" for demand in demands)
    waiting = [line for demand in demands if (line := _place(demand, nodes))]
    yield "nodes:"
    for node in nodes:
        free = {n: amount for n, amount in node.free.items() if n != "object_store_memory" and ":" not in n}
        yield f"  {node.name}: {', '.join(node.workers) or 'none'}; stays free: {_rounded(free)}"
    yield from waiting


def _place(demand: Demand, nodes: Sequence[Node]) -> str:
    placed = place_all(demand, nodes)
    if placed == demand.count:
        return ""
    most = {name: max((node.free.get(name, 0.0) for node in nodes), default=0.0) for name in demand.bundle}
    return (
        f"waits: {demand.count - placed} of {demand} do not fit now; the most that a node has free is "
        f"{_rounded(most)}"
    )


def _rounded(amounts: dict[str, float]) -> str:
    return text_of({name: round(max(0.0, amount), 3) for name, amount in amounts.items()}) or "nothing"
