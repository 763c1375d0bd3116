"""How weights are laid out in buckets, and which weight sets an engine refuses."""

from dataclasses import replace

import numpy as np
import pytest

from transport.weights import (
    GOLDEN_LIMITS,
    WeightManifest,
    bucket_sizes,
    check_buckets,
    check_golden,
    checksum,
    plan_buckets,
)

pytestmark = pytest.mark.timeout(20)

SHAPES: list[tuple[str, tuple[int, ...]]] = [("a", (2, 3)), ("b", (4,)), ("c", (10, 10)), ("d", ()), ("e", (1,))]
ALONE = [[(name, shape, "float32")] for name, shape in SHAPES]


def manifest(buckets: list[np.ndarray]) -> WeightManifest:
    return WeightManifest(
        incarnation=1,
        version=7,
        dtype="float32",
        tensors=(),
        bucket_bytes=tuple(bucket.nbytes for bucket in buckets),
        checksums=tuple(checksum(bucket) for bucket in buckets),
        golden_token_ids=(1, 2, 3),
        golden_log_probs=(-1.0, -2.0),
    )


@pytest.fixture
def buckets() -> list[np.ndarray]:
    return [np.arange(8, dtype=np.uint8), np.arange(5, dtype=np.uint8)]


def test_parameters_follow_each_other_and_a_large_one_gets_its_own_bucket() -> None:
    plan = plan_buckets(ALONE, max_bytes=40)
    assert [(spec.name, spec.bucket, spec.offset) for spec in plan] == [
        ("a", 0, 0),
        ("b", 0, 24),
        ("c", 1, 0),
        ("d", 2, 0),
        ("e", 2, 4),
    ]
    assert [spec.num_elements for spec in plan] == [6, 4, 100, 1, 1]
    assert bucket_sizes(plan) == (40, 400, 8)


@pytest.mark.parametrize("max_bytes", [1, 24, 41, 500, 10_000])
def test_buckets_have_no_gaps_and_hold_everything(max_bytes: int) -> None:
    plan = plan_buckets(ALONE, max_bytes=max_bytes)
    sizes = bucket_sizes(plan)
    assert [(spec.name, spec.shape) for spec in plan] == SHAPES
    assert sum(sizes) == 4 * sum(spec.num_elements for spec in plan)
    for index, size in enumerate(sizes):
        inside = [spec for spec in plan if spec.bucket == index]
        assert size <= max_bytes or len(inside) == 1
        ends = [spec.offset + 4 * spec.num_elements for spec in inside]
        assert [spec.offset for spec in inside] == [0, *ends[:-1]]


def test_a_group_shares_a_bucket_and_float32_among_bfloat16_is_aligned() -> None:
    groups = [
        [("a", (3,), "bfloat16")],
        [("b", (3,), "bfloat16"), ("c", (2,), "float32")],
        [("d", (5,), "float32")],
    ]
    plan = plan_buckets(groups, max_bytes=20)
    assert [(spec.name, spec.bucket, spec.offset) for spec in plan] == [
        ("a", 0, 0),
        ("b", 0, 6),
        ("c", 0, 12),
        ("d", 1, 0),
    ]
    assert bucket_sizes(plan) == (20, 20)
    assert [spec.bucket for spec in plan_buckets(groups, max_bytes=1)] == [0, 1, 1, 2]


def test_whole_buckets_pass(buckets: list[np.ndarray]) -> None:
    check_buckets(manifest(buckets), buckets)
    assert manifest(buckets).total_bytes == 13


def test_a_changed_byte_is_found_and_its_bucket_named(buckets: list[np.ndarray]) -> None:
    expected = manifest(buckets)
    buckets[1][4] ^= 1
    with pytest.raises(ValueError, match="weights v7: checksum of bucket 1 differs"):
        check_buckets(expected, buckets)


def test_a_missing_bucket_is_found(buckets: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="weights v7: expected 2 buckets, got 1"):
        check_buckets(manifest(buckets), buckets[:1])


@pytest.mark.parametrize("wrong", [np.arange(9, dtype=np.uint8), np.arange(2, dtype=np.float32)])
def test_a_bucket_of_another_size_or_type_is_named(buckets: list[np.ndarray], wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"bucket 0 must hold 8 bytes of uint8, got .* of {wrong.dtype}"):
        check_buckets(manifest(buckets), [wrong, buckets[1]])


def test_swapped_buckets_of_the_same_size_are_found() -> None:
    pair = [np.arange(8, dtype=np.uint8), np.arange(8, dtype=np.uint8)[::-1].copy()]
    with pytest.raises(ValueError, match="checksum of bucket 0 differs"):
        check_buckets(manifest(pair), pair[::-1])


def test_golden_log_probs_pass_up_to_the_limit_of_their_dtype(buckets: list[np.ndarray]) -> None:
    expected = manifest(buckets)
    assert check_golden(expected, [-1.0, -2.0005], dtype="float32") == pytest.approx(0.00025)
    for dtype, limit in GOLDEN_LIMITS.items():
        assert check_golden(expected, [-1.0 + limit / 2, -2.0], dtype=dtype) == pytest.approx(limit / 4)
        with pytest.raises(ValueError, match=f"weights v7: .*limit {limit} for {dtype}"):
            check_golden(expected, [-1.0 + 2.1 * limit, -2.0], dtype=dtype)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_golden_log_probs_that_are_no_numbers_never_pass(buckets: list[np.ndarray], bad: float) -> None:
    with pytest.raises(ValueError, match="golden log-probs differ"):
        check_golden(manifest(buckets), [-1.0, bad], dtype="bfloat16")
    with pytest.raises(ValueError, match="golden log-probs differ"):
        check_golden(replace(manifest(buckets), golden_log_probs=(-1.0, bad)), [-1.0, -2.0], dtype="bfloat16")


def test_golden_log_probs_of_another_length_are_an_error(buckets: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="golden sequence: expected 2 log-probs"):
        check_golden(manifest(buckets), [-1.0], dtype="float32")
