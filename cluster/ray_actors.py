"""Actors and tasks of plain classes and functions: the only place that applies `ray.remote`."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.placement import Demand
from records.events import reason_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONCURRENT_CALLS = 1000
"""Calls an asyncio actor serves at once; back-pressure comes from the controller's windows, not from this."""

HEALTH_GROUP = "health"
"""Concurrency group of workers that serve one call at a time: their heartbeats are answered beside it."""


LET_GO_S = 3600.0
"""Ray's head is told for so long what is not needed any more; what it does not hear it frees when the run ends."""


@dataclass(frozen=True)
class WorkerSpec:
    """How one worker of a pool is built: a plain class and its arguments."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_async: bool = True


def worker_actor(spec: WorkerSpec, demand: Demand, group: Any, index: int) -> Any:
    """Create the actor of a pool's worker in bundle `index` of a placement group; Ray never restarts it.

    The heartbeats of one that serves one call at a time go to its concurrency group `HEALTH_GROUP`.
    """
    bundle = dict(demand.bundle)
    num_gpus = bundle.pop("GPU", 0)
    options: dict[str, Any] = {
        "num_cpus": bundle.pop("CPU", 0),
        "num_gpus": 0 if demand.further_stages else num_gpus,  # of a pipeline, vLLM's own actors take them
        "memory": int(bundle.pop("memory", 0)) or None,
        "resources": bundle or None,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    groups: dict[str, Any] = {} if spec.is_async else {"concurrency_groups": {HEALTH_GROUP: 1}}
    if spec.is_async:
        options["max_concurrency"] = CONCURRENT_CALLS
    actor = ray.remote(num_cpus=0, **groups)(spec.cls)
    return actor.options(**options).remote(*spec.args, **spec.kwargs)


def actor_on_node(cls: type, node_id: str) -> Any:
    """Start an actor of a plain class on a node; it reserves nothing and ends with this process."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(cls).options(num_cpus=0, max_restarts=0, scheduling_strategy=there).remote()


def named_actor(cls: type, *, name: str, args: tuple[Any, ...]) -> Any:
    """Start an asyncio actor on this node that others find by its name; it ends with this process.

    It reserves nothing. ValueError if the name is taken in this Ray namespace.
    """
    # With a soft wish Ray takes other nodes too, whose loss would be that of the actor.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    options["max_concurrency"] = CONCURRENT_CALLS
    return ray.remote(cls).options(**options).remote(*args)


def let_go(*, actor: Any = None, group: Any = None) -> threading.Thread:
    """End an actor and free a placement group, in a thread: as often as it takes until Ray's head has heard it."""

    def run() -> None:
        calls = [partial(ray.kill, actor)] if actor is not None else []
        calls += [partial(remove_placement_group, group)] if group is not None else []
        deadline = time.monotonic() + LET_GO_S
        for call in calls:
            while ray.is_initialized():
                try:
                    call()
                    break
                except (RayError, RuntimeError, TimeoutError) as error:
                    logger.warning("Ray does not take back what is not needed any more: %s", reason_of(error))
                    if time.monotonic() > deadline:
                        return
                    time.sleep(1)

    thread = threading.Thread(target=run, name="let go", daemon=True)
    thread.start()
    return thread


def on_every_node(function: Callable[..., T], *args: Any, timeout_s: float) -> dict[str, T]:
    """Call a function once on every node that is alive; results by node name, of those that answer in time."""
    refs: dict[str, Any] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        refs[node["NodeName"]] = ray.remote(function).options(**options).remote(*args)
    deadline, results = time.monotonic() + timeout_s, dict[str, T]()
    for name, ref in refs.items():
        try:
            results[name] = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
        except (RayError, TimeoutError) as error:
            logger.warning("node %s: %s", name, reason_of(error))
    return results
