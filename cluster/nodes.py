"""Nodes of a cluster as numbers: what they have, what is free, and where placement groups would go.

Pure arithmetic, used to check a plan, to show it, and to choose the node that Ray is asked for.
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

Bundle = dict[str, float]
Strategy = Literal["pack", "strict_pack", "spread"]

EPSILON = 1e-6
"""Ray counts resources in ten-thousandths."""

COMMON = ("CPU", "memory", "object_store_memory")


class Node:
    """One node; `take` reserves on it. A share of a GPU must be free on a single device."""

    def __init__(self, name: str, total: Mapping[str, float], *, node_id: str = "") -> None:
        self.name = name
        self.node_id = node_id
        self.total = dict(total)
        self.free = dict(total)
        self.workers: list[str] = []
        """Names of the workers that a plan puts here."""
        self.num_of_role: Counter[str] = Counter()
        self._devices = [1.0] * int(total.get("GPU", 0.0))

    def fits(self, bundle: Bundle) -> bool:
        """True if all of the bundle is free here."""
        enough = all(self.free.get(name, 0.0) + EPSILON >= amount for name, amount in bundle.items())
        return enough and self._devices_for(bundle.get("GPU", 0.0)) is not None

    def take(self, bundle: Bundle, role: str = "") -> None:
        """Reserve the bundle, which should fit."""
        for name, amount in bundle.items():
            self.free[name] = self.free.get(name, 0.0) - amount
        share = min(bundle.get("GPU", 0.0), 1.0)
        for device in self._devices_for(bundle.get("GPU", 0.0)) or ():
            self._devices[device] -= share
        self.num_of_role[role] += 1

    def capacity(self, bundle: Bundle) -> int:
        """How many such bundles the free amounts would hold."""
        return min(math.floor((self.free.get(name, 0.0) + EPSILON) / amount) for name, amount in bundle.items())

    def num_unneeded(self, bundle: Bundle) -> int:
        """How many special resources it has (GPUs, custom ones) that the bundle does not ask for."""
        names = [
            name for name, amount in self.total.items() if amount > 0 and name not in COMMON and ":" not in name
        ]
        return sum(name not in bundle for name in names)

    def _devices_for(self, num_gpus: float) -> list[int] | None:
        """The devices that such a bundle gets: the fullest one that has the share, or wholly free ones."""
        if num_gpus <= 0:
            return []
        share, count = min(num_gpus, 1.0), max(1, round(num_gpus))
        fitting = [i for i, free in enumerate(self._devices) if free + EPSILON >= share]
        fitting.sort(key=lambda i: self._devices[i])
        return fitting[:count] if len(fitting) >= count else None


def place(
    bundles: Sequence[Bundle], nodes: Sequence[Node], *, strategy: Strategy, role: str, num_left: int = 1
) -> list[Node] | None:
    """Reserve the bundles of one placement group; None, and nothing is reserved, if they do not fit together.

    `pack` joins workers of the role and takes few nodes, `spread` takes the node with the fewest of them; both
    leave nodes with special resources to those that ask for them, if they can. So many workers of the role are
    `num_left` to place, this one included.
    """
    num_left = max(num_left, len(bundles))
    if strategy == "strict_pack":
        chosen = None
        for index in _by_preference(bundles[0], nodes, "pack", role, num_left):
            if _assign(bundles, [nodes[index]], "pack", role, num_left) is not None:
                chosen = [index] * len(bundles)
                break
    else:
        chosen = _assign(bundles, nodes, strategy, role, num_left)
    if chosen is None:
        return None
    for bundle, index in zip(bundles, chosen, strict=True):
        nodes[index].take(bundle, role)
    return [nodes[index] for index in chosen]


def _assign(
    bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy, role: str, num_left: int
) -> list[int] | None:
    """Index of the node of each bundle, several tried on copies of the nodes."""
    if len(bundles) == 1:
        return _by_preference(bundles[0], nodes, strategy, role, num_left)[:1] or None
    trial, chosen = copy.deepcopy(list(nodes)), []
    for number, bundle in enumerate(bundles):
        fitting = _by_preference(bundle, trial, strategy, role, num_left - number)
        if not fitting:
            return None
        trial[fitting[0]].take(bundle, role)
        chosen.append(fitting[0])
    return chosen


def _by_preference(
    bundle: Bundle, nodes: Sequence[Node], strategy: Strategy, role: str, num_left: int
) -> list[int]:
    """Indices of the nodes that fit, best first."""

    def preference(index: int) -> tuple[int, ...]:
        node = nodes[index]
        here, capacity = node.num_of_role[role], node.capacity(bundle)
        if strategy == "spread":
            return node.num_unneeded(bundle), here, -capacity, index
        return node.num_unneeded(bundle), -here, -min(num_left, capacity), capacity, index

    return sorted((i for i, node in enumerate(nodes) if node.fits(bundle)), key=preference)
