"""Published buckets that an engine loads from where they arrived, and lets go."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from actors.vllm.staging import WeightsInHand, buckets_at
from transport.weight_sources import BucketsInPlace
from transport.weights import WeightManifest, bucket_sizes, checksum, plan_buckets

pytestmark = pytest.mark.filterwarnings("error")

PLAN = plan_buckets([("a", (2, 3)), ("b", (4,)), ("c", (4,))], dtype="float32", max_bytes=40)


def buckets() -> list[np.ndarray]:
    """As they come from the object store: read-only."""
    made = [np.arange(40, dtype=np.uint8), np.arange(100, 116, dtype=np.uint8)]
    for bucket in made:
        bucket.flags.writeable = False
    return made


def manifest_of(parts: list[np.ndarray]) -> WeightManifest:
    return WeightManifest(
        incarnation=0,
        version=1,
        dtype="float32",
        tensors=PLAN,
        bucket_bytes=bucket_sizes(PLAN, dtype="float32"),
        checksums=tuple(checksum(part) for part in parts),
        golden_token_ids=(1, 2),
        golden_log_probs=(-1.0,),
    )


def test_buckets_are_handed_over_where_they_are_and_let_go() -> None:
    parts = buckets()
    weights = WeightsInHand()
    staged = weights.stage(manifest_of(parts), BucketsInPlace(parts))
    assert staged.update["tensors"] == [("a", (2, 3), 0, 0), ("b", (4,), 0, 24), ("c", (4,), 1, 0)]
    assert staged.bytes_fetched == 56
    handed = buckets_at(staged.update["path"], staged.update["bucket_bytes"])
    assert [tensor.data_ptr() for tensor in handed] == [part.ctypes.data for part in parts]
    alive = weakref.ref(parts[0])
    del parts, handed, staged
    gc.collect()
    assert alive() is None


def test_a_damaged_bucket_is_refused_and_leaves_nothing_to_load() -> None:
    parts, weights = buckets(), WeightsInHand()
    staged = weights.stage(manifest_of(parts), BucketsInPlace(parts))
    damaged = replace(manifest_of(parts), checksums=(1, 2))
    with pytest.raises(ValueError, match="bucket 0"):
        weights.stage(damaged, BucketsInPlace(parts))
    with pytest.raises(KeyError):
        buckets_at(staged.update["path"], (40, 16))


def test_what_was_not_loaded_is_let_go_at_the_end_and_engines_do_not_meet() -> None:
    first, second, parts = WeightsInHand(), WeightsInHand(), buckets()
    one, other = (weights.stage(manifest_of(parts), BucketsInPlace(parts)).update for weights in (first, second))
    first.close()
    with pytest.raises(KeyError):
        buckets_at(one["path"], (40, 16))
    assert len(buckets_at(other["path"], (40, 16))) == 2
