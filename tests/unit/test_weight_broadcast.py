"""A published set reaches the members' files to the bit; damage, silence and absence are errors in good time."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from actors.vllm.shared_file import PREFIX, SHARED_MEMORY
from actors.weight_receiver import WeightReceiver
from learner.weight_sender import WeightSender
from transport.collective import Rendezvous
from transport.weights import TensorSpec, WeightManifest, checksum

LIMIT_S = 10.0
NAMES = count()


def weights(version: int, *, has_differences: bool = False) -> tuple[list[Any], list[np.ndarray]]:
    """What a learner yields of a version, and its buckets; sizes differ, the last bucket is small."""
    generator = np.random.default_rng(version)
    buckets = [generator.integers(0, 256, size, np.uint8) for size in (3_000_000, 1_000_000, 40)]
    for bucket in buckets:
        bucket.flags.writeable = False
    manifest = WeightManifest(
        incarnation=0,
        version=version,
        dtype="float32",
        tensors=tuple(TensorSpec(str(i), (b.size // 4,), i, 0) for i, b in enumerate(buckets)),
        bucket_bytes=tuple(b.nbytes for b in buckets),
        checksums=tuple(map(checksum, buckets)),
        golden_token_ids=(1, 2),
        golden_log_probs=(-1.0, next(NAMES)),  # no other test's file has this name
        base_version=version - 1 if has_differences else None,
    )
    difference = np.zeros(3, np.uint8)
    parts = [part for b in buckets for part in (b, difference)] if has_differences else buckets
    return [*parts, manifest], buckets


def rendezvous(num_members: int, timeout_s: float = LIMIT_S) -> Rendezvous:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return Rendezvous("gloo", "127.0.0.1", port, f"test-{port}", 1 + num_members, timeout_s)


@contextmanager
def members(num: int) -> Iterator[tuple[WeightSender, list[WeightReceiver]]]:
    """A sender and receivers that have not met."""
    sender, receivers = WeightSender(), [WeightReceiver() for _ in range(num)]
    yield sender, receivers
    for receiver in receivers:
        receiver.close()


def at_once(*calls: Callable[[], Any]) -> list[Future[Any]]:
    """Make all calls in threads of their own and wait for their ends."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [threads.submit(call) for call in calls]


def join(sender: WeightSender, receivers: list[WeightReceiver], where: Rendezvous) -> list[Future[Any]]:
    joins = [lambda r=r, rank=rank: r.join(where, rank) for rank, r in enumerate(receivers, 1)]
    return at_once(lambda: sender.join(where), *joins)


def send(sender: WeightSender, receivers: list[WeightReceiver], published: list[Any]) -> list[Future[Any]]:
    manifest = published[-1]
    assert [part is each for part, each in zip(sender.keeping(published), published, strict=True)]
    return at_once(
        lambda: sender.send(manifest.incarnation, manifest.version),
        *(lambda r=r: r.receive(manifest) for r in receivers),
    )


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result() for future in futures]


def files_of(manifest: WeightManifest) -> list[bytes]:
    return [path.read_bytes() for path in SHARED_MEMORY.glob(f"{PREFIX}{manifest.key}*")]


def test_two_versions_reach_the_files_of_all_members_to_the_bit() -> None:
    with members(2) as (sender, receivers):
        results(join(sender, receivers, rendezvous(2)))
        first, second = weights(1), weights(2)
        for published, buckets in (first, second):
            results(send(sender, receivers, published))
            assert set(files_of(published[-1])) == {b"".join(bucket.tobytes() for bucket in buckets)}
        for receiver in receivers:
            receiver.release(first[0][-1])  # an older version: nothing happens
        assert files_of(second[0][-1])
        assert files_of(first[0][-1]) == []
    assert files_of(second[0][-1]) == []


def test_differences_are_not_sent() -> None:
    with members(1) as (sender, receivers):
        results(join(sender, receivers, rendezvous(1)))
        published, buckets = weights(1, has_differences=True)
        results(send(sender, receivers, published))
        assert files_of(published[-1]) == [b"".join(bucket.tobytes() for bucket in buckets)]
        receivers[0].release(published[-1])
        assert files_of(published[-1]) == []


def test_a_damaged_bucket_leaves_no_file_and_the_next_group_works() -> None:
    with members(2) as (sender, receivers):
        results(join(sender, receivers, rendezvous(2)))
        published, _ = weights(1)
        wrong = replace(published[-1], checksums=(1, 2, 3))
        _, *received = send(sender, receivers, [*published[:-1], wrong])
        for future in received:
            with pytest.raises(ValueError, match="weights v1: checksum of bucket 0 differs"):
                future.result()
        assert files_of(wrong) == []
        results(join(sender, receivers, rendezvous(2)))
        published, buckets = weights(2)
        results(send(sender, receivers, published))
        assert set(files_of(published[-1])) == {b"".join(bucket.tobytes() for bucket in buckets)}


def test_a_member_that_does_not_receive_ends_the_broadcast_at_its_limit() -> None:
    with members(2) as (sender, receivers):
        results(join(sender, receivers, rendezvous(2, timeout_s=2.0)))
        published, _ = weights(1)
        start = time.monotonic()
        sent, received = send(sender, receivers[:1], published)
        assert time.monotonic() - start < 5
        assert isinstance(sent.exception(), TimeoutError | RuntimeError)
        assert isinstance(received.exception(), TimeoutError | RuntimeError)
        assert files_of(published[-1]) == []


def test_a_member_that_does_not_come_ends_the_forming_at_its_limit() -> None:
    with members(2) as (sender, receivers):
        start = time.monotonic()
        for future in join(sender, receivers[:1], rendezvous(2, timeout_s=2.0)):
            assert isinstance(future.exception(), TimeoutError | RuntimeError)
        assert time.monotonic() - start < 5


def test_only_the_kept_set_is_sent_and_only_once() -> None:
    sender = WeightSender()
    with pytest.raises(RuntimeError, match="there is no group, or nothing to send"):
        sender.send(0, 1)
    with members(1) as (sender, receivers):
        results(join(sender, receivers, rendezvous(1)))
        list(sender.keeping(weights(1)[0]))
        with pytest.raises(ValueError, match="weights v2 are not kept: v1 are"):
            sender.send(0, 2)
        sender.forget()
        with pytest.raises(RuntimeError, match="nothing to send"):
            sender.send(0, 1)


def test_an_engine_in_no_group_receives_nothing() -> None:
    with pytest.raises(RuntimeError, match="this engine is in no group"):
        WeightReceiver().receive(weights(1)[0][-1])
