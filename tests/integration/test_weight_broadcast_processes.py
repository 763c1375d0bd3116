"""The two ends of a broadcast in processes of their own, for each backend: used, broken by a death, formed again.

Without Ray and engines. The NCCL processes share one GPU, each as if on a host of its own.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from actors.vllm.shared_file import remove_left_over
from actors.weight_receiver import WeightReceiver
from learner.weight_sender import WeightSender
from transport.collective import Rendezvous
from transport.weights import TensorSpec, WeightManifest, checksum

pytestmark = pytest.mark.timeout(240)

LIMIT_S = 30.0
SIZES = (8_000_000, 3_000_000, 4)

sender = WeightSender()
receiver = WeightReceiver()
"""Of the process that a function of this module is called in."""


def buckets_of(version: int) -> list[np.ndarray]:
    generator = np.random.default_rng(version)
    return [generator.integers(0, 256, size, np.uint8) for size in SIZES]


def manifest_of(version: int, name: float) -> WeightManifest:
    """The manifest of a version; `name` tells the files of different tests apart."""
    specs = tuple(TensorSpec(str(i), (size // 4,), i, 0) for i, size in enumerate(SIZES))
    checksums = tuple(map(checksum, buckets_of(version)))
    return WeightManifest(0, version, "float32", specs, SIZES, checksums, (1, 2), (name,))


def begin(host: str) -> None:
    os.environ.update(NCCL_HOSTID=host, OMP_NUM_THREADS="1")


def join_as_sender(rendezvous: Rendezvous) -> None:
    sender.join(rendezvous)


def send(manifest: WeightManifest) -> float:
    list(sender.keeping([*buckets_of(manifest.version), manifest]))
    return sender.send(manifest.incarnation, manifest.version)


def join_as_receiver(rendezvous: Rendezvous, rank: int) -> None:
    receiver.join(rendezvous, rank)


def receive(manifest: WeightManifest) -> bool:
    """Whether the file holds the version to the bit."""
    receiver.receive(manifest)
    assert receiver._held is not None
    return receiver._held[1].read().tobytes() == b"".join(b.tobytes() for b in buckets_of(manifest.version))


def leave() -> None:
    receiver.close()


class Member:
    """A process: functions of this module are called in it."""

    def __init__(self, host: str) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), begin, (host,))

    def call(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        return self._process.submit(function, *args)

    def kill(self) -> None:
        os.kill(self.call(os.getpid).result(60), signal.SIGKILL)

    def close(self) -> None:
        self._process.shutdown(wait=False, cancel_futures=True)


def rendezvous_of(backend: str, num: int) -> Rendezvous:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return Rendezvous(backend, "127.0.0.1", port, f"test-{port}", num, LIMIT_S)


def join(backend: str, learner: Member, engines: list[Member]) -> None:
    rendezvous = rendezvous_of(backend, 1 + len(engines))
    calls = [learner.call(join_as_sender, rendezvous)]
    calls += [engine.call(join_as_receiver, rendezvous, rank) for rank, engine in enumerate(engines, 1)]
    for call in calls:
        call.result(2 * LIMIT_S)


def broadcast(learner: Member, engines: list[Member], manifest: WeightManifest) -> None:
    calls = [engine.call(receive, manifest) for engine in engines]
    learner.call(send, manifest).result(2 * LIMIT_S)
    assert all([call.result(2 * LIMIT_S) for call in calls])


@pytest.fixture
def members() -> Iterator[list[Member]]:
    """A learner and three engines, each in a process."""
    with ExitStack() as stack:
        found = [Member(f"host-{index}") for index in range(4)]
        for member in found:
            stack.callback(member.close)
        yield found
    remove_left_over()  # of the one that was killed


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def test_a_group_outlives_the_death_of_a_member_as_a_new_one(backend: str, members: list[Member]) -> None:
    learner, first, second, third = members
    name = time.time()
    join(backend, learner, [first, second])
    for version in (1, 2):
        broadcast(learner, [first, second], manifest_of(version, name))

    second.kill()
    broken = [learner.call(send, manifest_of(3, name)), first.call(receive, manifest_of(3, name))]
    start = time.monotonic()
    for call in broken:
        assert isinstance(call.exception(2 * LIMIT_S), RuntimeError | TimeoutError)
    assert time.monotonic() - start < LIMIT_S + 10
    with pytest.raises(BrokenProcessPool):
        second.call(leave).result(60)

    join(backend, learner, [first, third])
    broadcast(learner, [first, third], manifest_of(4, name))
    for engine in (first, third):
        engine.call(leave).result(60)
