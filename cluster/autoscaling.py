"""What the balance of the pools asks of a Ray cluster: what is free, and more nodes. The only place that does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import ray
from ray.autoscaler.sdk import request_resources

from cluster.placement import Bundle
from cluster.ray_private import may_autoscale
from cluster.waiting import in_thread
from settings.cluster import ClusterConfig

ANSWER_TIMEOUT_S = 30.0
"""Maximum time for Ray's head to answer."""


def grows(config: ClusterConfig) -> bool:
    """True if nodes may come to the connected cluster: as configured, else if its head is meant for it."""
    return may_autoscale() if config.grows is None else config.grows


class Cluster(Protocol):
    """A cluster that workers are placed on."""

    @property
    def may_grow(self) -> bool:
        """True if it can be asked for nodes."""
        ...

    async def free(self) -> Mapping[str, float]:
        """What nobody has reserved now, by resource, in the whole cluster; RayError or TimeoutError if unknown."""
        ...

    async def request(self, bundles: Sequence[Bundle]) -> None:
        """Ask for nodes that hold all these bundles, placed ones included.

        A request stands until the next one; an empty one withdraws it.
        """
        ...


@dataclass(frozen=True)
class RayCluster:
    """The connected Ray cluster; without an autoscaler in it Ray only keeps a request."""

    may_grow: bool
    """Whether nodes may be asked for."""

    async def free(self) -> Mapping[str, float]:
        """As Ray reports it, which may be a moment old."""
        return await in_thread(
            ray.available_resources, timeout_s=ANSWER_TIMEOUT_S, what="Ray's head: what is free"
        )

    async def request(self, bundles: Sequence[Bundle]) -> None:
        """Ask Ray's autoscaler."""
        ask = partial(request_resources, bundles=[dict(bundle) for bundle in bundles])
        await in_thread(ask, timeout_s=ANSWER_TIMEOUT_S, what="Ray's head: a request for nodes")
