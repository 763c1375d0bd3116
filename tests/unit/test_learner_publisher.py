"""Published buckets hold every weight once, under its Hugging Face name, and their memory is used again."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from learner.publisher import BucketMemory, WeightHistory, publish_weights
from tests.unit.test_learner_scene import GOLDEN_TOKEN_IDS, tiny_qwen3
from transport.differences import decode
from transport.weights import WeightManifest, check_buckets


def publish(
    model: torch.nn.Module, *, dtype: str, max_bytes: int, version: int = 2, history: WeightHistory | None = None
) -> tuple[list[np.ndarray], WeightManifest]:
    *buckets, manifest = publish_weights(
        model,
        gathered=lambda parameters: nullcontext(),
        is_first_rank=True,
        incarnation=1,
        version=version,
        dtype=dtype,
        golden_token_ids=GOLDEN_TOKEN_IDS,
        golden_log_probs=[-1.0] * (len(GOLDEN_TOKEN_IDS) - 1),
        max_bytes=max_bytes,
        history=history,
    )
    assert isinstance(manifest, WeightManifest)
    return buckets, manifest  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**28])
@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_float32_model_is_published_in_the_engine_dtype_for_any_bucket_size(
    name: str, dtype: torch.dtype, max_bytes: int
) -> None:
    model = tiny_qwen3(tied=False)
    buckets, manifest = publish(model, dtype=name, max_bytes=max_bytes)
    check_buckets(manifest, buckets)
    parameters = dict(model.named_parameters())
    assert [spec.name for spec in manifest.tensors] == list(parameters)
    for spec in manifest.tensors:
        stop = spec.offset + spec.num_elements * dtype.itemsize
        values = torch.from_numpy(buckets[spec.bucket][spec.offset : stop].copy()).view(dtype)
        assert torch.equal(values.view(spec.shape), parameters[spec.name].to(dtype))


def test_a_tied_output_embedding_is_sent_once() -> None:
    _, manifest = publish(tiny_qwen3(tied=True), dtype="float32", max_bytes=2**28)
    names = [spec.name for spec in manifest.tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_another_rank_yields_nothing_but_joins_every_gather() -> None:
    gathered: list[int] = []

    def gather(parameters: object) -> nullcontext[None]:
        gathered.append(len(list(parameters)))  # pyright: ignore[reportArgumentType, reportCallIssue]
        return nullcontext()

    model = tiny_qwen3()
    parts = publish_weights(
        model,
        gathered=gather,
        is_first_rank=False,
        incarnation=1,
        version=2,
        dtype="float32",
        golden_token_ids=GOLDEN_TOKEN_IDS,
        golden_log_probs=[],
        max_bytes=20_000,
    )
    assert list(parts) == []
    assert len(gathered) > 1
    assert sum(gathered) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_a_history_each_bucket_is_followed_by_its_exact_difference(dtype: str) -> None:
    model, history = tiny_qwen3(), WeightHistory(full_every=10)
    old, first = publish(model, dtype=dtype, max_bytes=20_000, version=0, history=history)
    check_buckets(first, old)
    assert (first.base_version, first.total_difference_bytes) == (None, 0)
    with torch.no_grad():
        next(model.parameters())[3].mul_(1.5)
    parts, second = publish(model, dtype=dtype, max_bytes=20_000, version=1, history=history)
    buckets, differences = parts[0::2], parts[1::2]
    check_buckets(second, buckets)
    assert second.base_version == 0
    assert second.difference_bytes == tuple(each.nbytes for each in differences)
    assert second.total_difference_bytes < 0.1 * second.total_bytes
    for base, bucket, difference in zip(old, buckets, differences, strict=True):
        assert decode(base, difference).tobytes() == bucket.tobytes()


def test_every_so_many_versions_there_are_no_differences() -> None:
    history = WeightHistory(full_every=3)
    bases = [history_publishes(history, incarnation=0, version=version) for version in range(7)]
    assert bases == [None, 0, 1, None, 3, 4, None]


def test_weights_of_another_incarnation_or_published_in_part_are_no_base() -> None:
    history = WeightHistory(full_every=10)
    assert history_publishes(history, incarnation=0, version=4) is None
    assert history_publishes(history, incarnation=1, version=2) is None
    assert history_publishes(history, incarnation=1, version=3) == 2
    assert history.begin(1, 4, (8, 8)) == 3
    history.remember(0, np.zeros(8, np.uint8), item_bytes=4)
    assert history_publishes(history, incarnation=1, version=5) is None
    assert history_publishes(history, incarnation=1, version=6) == 5


def history_publishes(history: WeightHistory, *, incarnation: int, version: int) -> int | None:
    base = history.begin(incarnation, version, (8, 8))
    for index in range(2):
        difference = history.remember(index, np.full(8, version, np.uint8), item_bytes=4)
        assert (difference is None) == (base is None)
    return base


def address(memory: BucketMemory, num_bytes: int) -> int:
    return memory.take(num_bytes).ctypes.data


def test_memory_that_was_let_go_is_used_again_for_what_fits() -> None:
    memory = BucketMemory()
    first = address(memory, 2**20)
    assert address(memory, 2**20) == first
    assert address(memory, 2**19) == first
    assert len(memory.take(2**19)) == 2**19
    assert address(memory, 2**21) != first


def test_memory_in_use_is_not_handed_out_whoever_holds_it() -> None:
    memory = BucketMemory()
    for hold in (lambda taken: taken, lambda taken: taken[5:7], torch.from_numpy, lambda taken: taken.data):
        taken = memory.take(2**20)
        taken[:] = 7
        held = hold(taken)
        del taken
        memory.take(2**20)[:] = 8
        assert np.all(np.asarray(held) == 7)
        del held


def test_two_that_are_held_in_turn_are_used_in_turn() -> None:
    memory, before, addresses = BucketMemory(), None, set[int]()
    for _ in range(10):
        taken = memory.take(2**20)
        addresses.add(taken.ctypes.data)
        before = taken
        del taken
    assert before is not None
    assert len(addresses) == 2


def test_a_small_bucket_leaves_the_memory_of_a_large_one() -> None:
    memory = BucketMemory()
    large = address(memory, 2**21)
    for _ in range(3):
        held = memory.take(2**21)
        assert held.ctypes.data == large
        small = memory.take(2**10)
        assert small.ctypes.data != large
        del held, small
