"""What the scaling study assumes of networks and storage, and the worker counts that follow from the rates.

Every assumption is a field of `Network` or `Limits`; docs/scaling.md lists them. Nothing here was measured but
`Limits.controller_rollouts_per_s`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

DEVICES_PER_NODE = 8
CELLS = 64
"""A large cluster is cut into so many equal cells, and a role gets whole cells (of 512 devices: whole nodes)."""


@dataclass(frozen=True)
class Network:
    """Bytes per second that links are assumed to give, and seconds of a message."""

    nvlink: float = 300e9
    """Of one device to others of its node, in one direction: two thirds of the data sheet's 450 GB/s."""
    device_link: float = 40e9
    """Of one device to other nodes: 80 % of one 400 Gb/s adapter for each."""
    store: float = 2e9
    """Into Ray's object store, and from it to one node: `device.publish_bytes_per_s` of a plan."""
    egress: float = 10e9
    """Out of one node's object store to all others together: 80 % of 100 Gb/s."""
    hop_s: float = 20e-6
    """Of one message in a ring."""
    bucket_bytes: float = 256 * 2**20
    """Of one collective."""


@dataclass(frozen=True)
class Limits:
    """What stays the same however many devices there are."""

    max_batch: int = 16_384
    """Responses of a step at most: beyond it a step is assumed to teach hardly more."""
    controller_rollouts_per_s: float = 5300.0
    """Measured on two shared cores, through 8 Ray actors (benchmarks/README.md)."""
    token_bytes: int = 20
    """Of a token in a scored table (`TeacherSignal.token_bytes`)."""


@dataclass(frozen=True)
class Sync:
    """Times of one weight version."""

    publish_s: float
    """How long the learner waits."""
    fetch_s: float
    """From then until the last engine has the bytes."""


def weight_sync(weight_bytes: float, num_nodes: int, network: Network, transport: str) -> Sync:
    """Publishing to `num_nodes` nodes with engines.

    `object_store`: every node fetches from the learner's at the same time. `tree`: nodes that have the weights
    serve others, which doubles their number each time. `nccl`: a ring of one device of each node, after which
    the learner continues; the object store gets its copy too.
    """
    into_store_s = weight_bytes / network.store
    if transport == "object_store":
        return Sync(into_store_s, max(into_store_s, num_nodes * weight_bytes / network.egress))
    if transport == "tree":
        return Sync(into_store_s, math.ceil(math.log2(num_nodes + 1)) * into_store_s)
    assert transport == "nccl", transport
    num_messages = math.ceil(weight_bytes / network.bucket_bytes) * num_nodes
    return Sync(into_store_s + weight_bytes / network.device_link + num_messages * network.hop_s, 0.0)


def reduction_s(num_parameters: float, num_ranks: int, network: Network) -> float:
    """ZeRO-2 over a ring: float32 gradients scattered and added, bfloat16 parameters gathered; not overlapped."""
    if num_ranks == 1:
        return 0.0
    num_bytes = (4 + 2) * num_parameters
    link = network.nvlink if num_ranks <= DEVICES_PER_NODE else network.device_link
    num_messages = 2 * (num_ranks - 1) * math.ceil(4 * num_parameters / network.bucket_bytes)
    return num_bytes * (num_ranks - 1) / num_ranks / link + num_messages * network.hop_s


@dataclass(frozen=True)
class Speeds:
    """What workers of each role do, in response tokens per second, and the learner's fixed times."""

    prompt: float
    mean: float
    """Response tokens."""
    engine_step_s: float
    sequence_s: float
    max_num_seqs: int
    prefill: float
    """Prompt tokens per second of a student engine."""
    load_s: float
    teacher: float
    """Tokens, prompts included, per second; so is `rank`."""
    rank: float
    step_s: float
    num_parameters: float
    weight_bytes: float


@dataclass(frozen=True)
class Allocation:
    """Worker counts, and the throughput that the rates give."""

    rollout: int
    teacher: int
    learner: int
    batch: int
    tokens_per_s: float


def allocations(
    speeds: Speeds, num_devices: int, network: Network, transport: str, max_batch: int
) -> Iterator[Allocation]:
    """Every split of the devices, in cells, with every batch that is a power of two."""
    cell = max(1, num_devices // CELLS)
    num_cells = num_devices // cell
    for log_batch in range(6, int(math.log2(max_batch)) + 1):
        for learner in range(1, num_cells - 1):
            for rollout in range(1, num_cells - learner):
                teacher = num_cells - learner - rollout
                counts = (rollout * cell, teacher * cell, learner * cell)
                yield Allocation(
                    *counts, 2**log_batch, throughput(speeds, *counts, 2**log_batch, network, transport)
                )


def throughput(
    speeds: Speeds, rollout: int, teacher: int, learner: int, batch: int, network: Network, transport: str
) -> float:
    """Response tokens per second of the slowest role; two batches of the start window are in the engines."""
    whole = speeds.prompt + speeds.mean
    sync = weight_sync(speeds.weight_bytes, nodes_of(rollout), network, transport)
    fixed_s = speeds.step_s + reduction_s(speeds.num_parameters, learner, network) + sync.publish_s
    share = math.ceil(batch / learner)  # responses of the rank with the most
    step_s = fixed_s + share * whole / speeds.rank
    together = max(1.0, min(speeds.max_num_seqs, 2 * batch / rollout))
    token_s = (speeds.engine_step_s + speeds.sequence_s * (together - 1)) / together
    engine = speeds.mean / (speeds.mean * token_s + speeds.prompt / speeds.prefill)
    engine *= max(0.05, 1 - speeds.load_s / step_s)
    return min(batch * speeds.mean / step_s, rollout * engine, teacher * speeds.teacher * speeds.mean / whole)


def best(speeds: Speeds, num_devices: int, network: Network, transport: str, limits: Limits) -> Allocation:
    """The smallest batch that comes within 5 % of the fastest allocation, and its fastest counts.

    Cells without which it is as fast, but for 1 %, are left idle.
    """
    found = list(allocations(speeds, num_devices, network, transport, limits.max_batch))
    most = max(each.tokens_per_s for each in found)
    batch = min(each.batch for each in found if each.tokens_per_s >= 0.95 * most)
    chosen = max((each for each in found if each.batch == batch), key=lambda each: each.tokens_per_s)
    enough, cell = 0.99 * chosen.tokens_per_s, max(1, num_devices // CELLS)
    for role in ("learner", "teacher", "rollout"):
        while (count := getattr(chosen, role) - cell) > 0:
            fewer = replace(chosen, **{role: count})
            counts = (fewer.rollout, fewer.teacher, fewer.learner, batch)
            tokens_per_s = throughput(speeds, *counts, network, transport)
            if tokens_per_s < enough:
                break
            chosen = replace(fewer, tokens_per_s=tokens_per_s)
    return chosen


def nodes_of(workers: int) -> int:
    """Nodes that hold so many workers with one device each."""
    return math.ceil(workers / DEVICES_PER_NODE)
