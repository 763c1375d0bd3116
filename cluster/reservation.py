"""Reserves placement groups in the connected Ray, on the nodes that `cluster/nodes.py` would choose."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster.nodes import Bundle, Node
from cluster.placement import Demand, amount_text, place_worker
from cluster.ray_private import placement_group_near
from cluster.waiting import wait_for

logger = logging.getLogger(__name__)

SOON_S = 5.0
"""A reservation that takes longer is reported."""

FREE_TIMEOUT_S = 30.0
"""Maximum time to reserve what was free a moment ago."""

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
        if chosen := _best_nodes(demand, bundles, held()):
            return await _reserve(demand, bundles, chosen, timeout_s, what)
    return await _reserve(demand, bundles, [], timeout_s, what)


async def _reserve(
    demand: Demand, bundles: list[Bundle], chosen: Sequence[str], timeout_s: float, what: str
) -> Reservation:
    if len(bundles) > 1:
        group = await _reserve_together(demand, bundles, chosen, timeout_s, what)
    else:
        group = placement_group_near(bundles[0], chosen[0] if chosen else None)
        await _ready(group, bundles, timeout_s, what)
    known = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    return Reservation(group, [(node_id, known[node_id]) for node_id in _node_ids(group)])


async def _reserve_together(
    demand: Demand, bundles: list[Bundle], chosen: Sequence[str], timeout_s: float, what: str
) -> PlacementGroup:
    """Reserve a group of several bundles on the chosen nodes, or where Ray finds capacity if these have none."""
    if chosen:
        try:
            return await _on_nodes(demand, bundles, chosen, what)
        except TimeoutError as error:
            logger.warning("the chosen nodes have no capacity any more, Ray chooses others: %s", error)
    group = placement_group(bundles, strategy=demand.group_strategy.upper())
    await _ready(group, bundles, timeout_s, what)
    if not demand.further_stages:
        return group
    node_ids = _node_ids(group)
    remove_placement_group(group)
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
    group = placement_group(split, strategy="PACK", bundle_label_selector=labels)
    await _ready(group, split, FREE_TIMEOUT_S, what)
    return group


async def _ready(group: PlacementGroup, bundles: Sequence[Bundle], timeout_s: float, what: str) -> None:
    waiting = asyncio.ensure_future(
        wait_for(group.ready(), timeout_s=timeout_s, what=lambda: _missing(what, bundles))
    )
    try:
        done, _ = await asyncio.wait({waiting}, timeout=min(SOON_S, timeout_s))
        if not done:
            logger.warning("waiting for %s", _missing(what, bundles))
        await waiting
    except BaseException:
        waiting.cancel()
        remove_placement_group(group)
        raise


def _missing(what: str, bundles: Sequence[Bundle]) -> str:
    """What the group wants, and what is free in the whole cluster now."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)
    free = ray.available_resources()
    parts = (
        f"{amount_text(n, amount)} wanted, {amount_text(n, free.get(n, 0.0))} free" for n, amount in wanted.items()
    )
    return f"{what}; {', '.join(parts)}"


def _best_nodes(demand: Demand, bundles: Sequence[Bundle], held: Mapping[str, int]) -> list[str]:
    """Ids of the nodes that suit each bundle best now; empty if they have no capacity."""
    nodes = nodes_now()
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


def _node_ids(group: PlacementGroup) -> list[str]:
    placed: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return [placed[index] for index in sorted(placed)]
