"""Reserves placement groups in the connected Ray, on the nodes that `cluster/nodes.py` would choose."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
)

from cluster.nodes import Bundle, Node
from cluster.placement import Demand, amount_text, place_worker
from cluster.ray_actors import let_go
from cluster.ray_private import placement_group_near
from cluster.waiting import in_thread, now
from records.events import reason_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

SOON_S = 5.0
"""A reservation that takes longer is reported."""

FREE_TIMEOUT_S = 30.0
"""Maximum time to reserve what was free a moment ago."""

ANSWER_TIMEOUT_S = 30.0
"""Maximum time for Ray's head to answer a question."""

NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class Reservation:
    """A placement group that is there, and the (id, name) of the node of each bundle."""

    group: PlacementGroup
    nodes: list[tuple[str, str]]


async def reserve(
    demand: Demand,
    names: Sequence[str],
    held: Callable[[], Mapping[str, int]],
    timeout_s: float,
    turn: asyncio.Lock,
) -> Reservation:
    """Reserve the placement group of one worker, or of all if the demand is one group.

    `held` counts the role's workers by node id. Ray chooses where our choice is not free any more. TimeoutError
    saying what is missing after `timeout_s`, with nothing reserved. Calls that share `turn` take free nodes one by
    one; those for which there is no capacity wait for it all at once, so that a cluster that grows sees them all.
    """
    what = f"placement of {', '.join(names)} ({demand})"
    bundles = [demand.bundle] * len(names) if demand.is_one_group else [demand.bundle, *demand.further_stages]
    async with turn:
        if chosen := await _best_nodes(demand, bundles, held(), timeout_s):
            return await _reserve(demand, bundles, chosen, timeout_s, what)
    return await _reserve(demand, bundles, [], timeout_s, what)


async def _reserve(
    demand: Demand, bundles: list[Bundle], chosen: Sequence[str], timeout_s: float, what: str
) -> Reservation:
    if len(bundles) > 1:
        group = await _reserve_together(demand, bundles, chosen, timeout_s, what)
    else:
        node_id = chosen[0] if chosen else None
        group = await _made(lambda: placement_group_near(bundles[0], node_id), bundles, timeout_s, what)
    try:
        return Reservation(group, await _ask(lambda: _nodes_of(group), what))
    except BaseException:
        let_go(group=group)
        raise


async def _reserve_together(
    demand: Demand, bundles: list[Bundle], chosen: Sequence[str], timeout_s: float, what: str
) -> PlacementGroup:
    """Reserve a group of several bundles on the chosen nodes, or where Ray finds capacity if these have none."""
    if chosen:
        try:
            return await _on_nodes(demand, bundles, chosen, what)
        except TimeoutError as error:
            logger.warning("the chosen nodes have no capacity any more, Ray chooses others: %s", error)
    strategy = demand.group_strategy.upper()
    group = await _made(lambda: placement_group(bundles, strategy=strategy), bundles, timeout_s, what)
    if not demand.further_stages:
        return group
    try:
        node_ids = [node_id for node_id, _ in await _ask(lambda: _nodes_of(group), what)]
    finally:
        gone = let_go(group=group)
    await _ask(gone.join, what)
    return await _on_nodes(demand, bundles, node_ids, what)


async def _on_nodes(
    demand: Demand, bundles: Sequence[Bundle], node_ids: Sequence[str], what: str
) -> PlacementGroup:
    """Reserve each bundle on exactly this node; TimeoutError, and nothing is reserved, if it is not free.

    Stages of a pipeline are reserved device by device: vLLM's Ray executor takes no bundle of several devices.
    """
    split: list[Bundle] = []
    labels: list[dict[str, str]] = []
    for bundle, node_id in zip(bundles, node_ids, strict=True):
        num_devices = int(bundle["GPU"]) if demand.further_stages else 1
        first = bundle | {"GPU": 1.0} if demand.further_stages else bundle
        split += [first, *[{"GPU": 1.0}] * (num_devices - 1)]
        labels += [{NODE_LABEL: node_id}] * num_devices
    make = partial(placement_group, split, strategy="PACK", bundle_label_selector=labels)
    return await _made(make, split, FREE_TIMEOUT_S, what)


async def _made(
    make: Callable[[], PlacementGroup], bundles: Sequence[Bundle], timeout_s: float, what: str
) -> PlacementGroup:
    """The group that is made, once it is there; else nothing of it stays."""
    start = now()
    group = await in_thread(make, timeout_s=timeout_s, what=what, late=lambda late: let_go(group=late))
    try:
        ready = await _ask(group.ready, what)
        left_s = timeout_s - (now() - start)
        if not await _is_there(ready, min(SOON_S, left_s)):
            logger.warning("waiting for %s", await _missing(what, bundles))
            if not await _is_there(ready, left_s - SOON_S):
                missing = await _missing(what, bundles)
                raise TimeoutError(f"no answer after {timeout_s:g} s from: {missing}")
    except BaseException:
        let_go(group=group)
        raise
    return group


async def _is_there(ready: Any, timeout_s: float) -> bool:
    waiting = asyncio.ensure_future(ready)
    try:
        done, _ = await asyncio.wait({waiting}, timeout=max(0.0, timeout_s))
        if done:
            waiting.result()
        return bool(done)
    finally:
        waiting.cancel()


async def _ask(call: Callable[[], T], what: str) -> T:
    return await in_thread(call, timeout_s=ANSWER_TIMEOUT_S, what=f"Ray's head ({what})")


async def _missing(what: str, bundles: Sequence[Bundle]) -> str:
    """What the group wants, and what is free in the whole cluster now."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)
    try:
        free = await _ask(ray.available_resources, what)
    except (RayError, TimeoutError) as error:
        return f"{what}; what is free is not known: {reason_of(error)}"
    parts = (
        f"{amount_text(n, amount)} wanted, {amount_text(n, free.get(n, 0.0))} free" for n, amount in wanted.items()
    )
    return f"{what}; {', '.join(parts)}"


async def _best_nodes(
    demand: Demand, bundles: Sequence[Bundle], held: Mapping[str, int], timeout_s: float
) -> list[str]:
    """Ids of the nodes that suit each bundle best now; empty if they have no capacity."""
    nodes = await in_thread(nodes_now, timeout_s=timeout_s, what="the cluster's nodes")
    for node in nodes:
        node.num_of_role[demand.role] = held.get(node.node_id, 0)
    return [node.node_id for node in place_worker(demand, bundles, nodes) or ()]


def nodes_now() -> list[Node]:
    """The cluster's nodes by name, less what the placement groups of all runs hold on them."""
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeName"])
    nodes = [Node(each["NodeName"], each["Resources"], node_id=each["NodeID"]) for each in alive]
    by_id = {node.node_id: node for node in nodes}
    groups: dict[str, dict[str, Any]] = placement_group_table()
    for group in groups.values():
        if group["state"] == "REMOVED":
            continue
        for index, node_id in group["bundles_to_node_id"].items():
            if node_id in by_id:
                by_id[node_id].take(group["bundles"][index])
    return nodes


def _nodes_of(group: PlacementGroup) -> list[tuple[str, str]]:
    """The (id, name) of the node of each bundle."""
    placed: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    return [(placed[index], names[placed[index]]) for index in sorted(placed)]
