"""How weights travel: a few large buckets of bytes and one manifest that says what lies where.

The learner yields buckets; the driver passes references on (`transport/weight_sources.py`); an engine checks the
checksums, loads, and must then reproduce the manifest's golden log-probs before it serves. No torch here:
buckets are flat uint8 arrays, dtypes are names.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ITEM_BYTES = {"float32": 4, "bfloat16": 2}

BUCKET_BYTES = 128 * 2**20
"""Default bucket size: large enough for full store bandwidth, small enough to gather one at a time."""


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor of a checkpoint lies: `bucket` index, byte `offset` in it, `shape` of the full tensor."""

    name: str
    shape: tuple[int, ...]
    bucket: int
    offset: int
    dtype: str = "float32"

    @property
    def num_elements(self) -> int:
        """Elements of the full tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Bytes in its bucket."""
        return self.num_elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class WeightManifest:
    """One published weight set, identified by (incarnation, version).

    `incarnation` rises at every resume or fall-back, so that versions of an abandoned one are refused.
    `checksums` holds one of `transport/weights.py` per bucket. `golden_log_probs[i]` is the learner's log-prob
    of `golden_token_ids[i + 1]` under these weights.
    """

    incarnation: int
    version: int
    dtype: str
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: tuple[int, ...]
    checksums: tuple[int, ...]
    golden_token_ids: tuple[int, ...]
    golden_log_probs: tuple[float, ...]
    base_version: int | None = None
    """The version, of the same incarnation, to which differences were published too; None: there are none."""
    difference_bytes: tuple[int, ...] = ()
    """Bytes of each bucket's coded difference."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all buckets."""
        return sum(self.bucket_bytes)

    @property
    def total_difference_bytes(self) -> int:
        """Bytes of all differences; 0 without."""
        return sum(self.difference_bytes)

    @property
    def key(self) -> str:
        """A name of this weight set, of letters and digits, that no other one on a machine has."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()
        return f"{self.incarnation}-{self.version}-{digest[:16]}"


def plan_buckets(
    groups: Iterable[Sequence[tuple[str, tuple[int, ...], str]]], *, max_bytes: int = BUCKET_BYTES
) -> tuple[TensorSpec, ...]:
    """Lay (name, shape, dtype) out in order into buckets of at most `max_bytes`.

    A group shares one bucket; a larger one gets its own.
    """
    specs: list[TensorSpec] = []
    bucket, offset = 0, 0
    for group in groups:
        size = sum(TensorSpec(name, shape, 0, 0, dtype).num_bytes for name, shape, dtype in group)
        if offset and offset + size > max_bytes:
            bucket, offset = bucket + 1, 0
        for name, shape, dtype in group:
            offset += -offset % ITEM_BYTES[dtype]
            specs.append(TensorSpec(name, tuple(shape), bucket, offset, dtype))
            offset += specs[-1].num_bytes
    return tuple(specs)


def bucket_sizes(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Bytes of each bucket of a plan."""
    sizes = [0] * (specs[-1].bucket + 1 if specs else 0)
    for spec in specs:
        sizes[spec.bucket] = spec.offset + spec.num_bytes
    return tuple(sizes)


def check_buckets(manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
    """Raise ValueError naming the bucket if a size or checksum differs from the manifest's."""
    check_num_buckets(manifest, buckets)
    for index, bucket in enumerate(buckets):
        check_bucket(manifest, index, bucket)


def check_num_buckets(manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
    """Raise ValueError if there are more or fewer than the manifest's."""
    if len(buckets) != len(manifest.checksums):
        raise ValueError(
            f"weights v{manifest.version}: expected {len(manifest.checksums)} buckets, got {len(buckets)}"
        )


def check_bucket(manifest: WeightManifest, index: int, bucket: np.ndarray) -> None:
    """Raise ValueError naming the bucket if its size or checksum differs from the manifest's."""
    if bucket.dtype != np.uint8 or bucket.nbytes != manifest.bucket_bytes[index]:
        raise ValueError(
            f"weights v{manifest.version}: bucket {index} must hold {manifest.bucket_bytes[index]} bytes "
            f"of uint8, got {bucket.nbytes} of {bucket.dtype}"
        )
    if checksum(bucket) != manifest.checksums[index]:
        raise ValueError(
            f"weights v{manifest.version}: checksum of bucket {index} differs; it was damaged on the way"
        )


GOLDEN_LIMITS = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest mean absolute difference of golden log-probs between learner and engine, by engine dtype.

fp32 engines differ from transformers by about 1e-5 at most; bf16 kernels by about 0.04 on average."""


def check_golden(
    manifest: WeightManifest, log_probs: Sequence[float], *, dtype: str, limit: float | None = None
) -> float:
    """Return the mean absolute difference to the golden log-probs; ValueError above the limit, or the dtype's."""
    expected, got = np.asarray(manifest.golden_log_probs), np.asarray(log_probs)
    if expected.shape != got.shape:
        raise ValueError(f"golden sequence: expected {expected.shape[0]} log-probs, got {got.shape}")
    difference = float(np.abs(expected - got).mean())
    limit = GOLDEN_LIMITS[dtype] if limit is None else limit
    if not difference <= limit:
        raise ValueError(
            f"weights v{manifest.version}: the engine's golden log-probs differ from the learner's by "
            f"{difference:.3g} on average, limit {limit:g} for {dtype} (check golden; --force golden continues)"
        )
    return difference


# -- checksums at the speed of memory: CRC-32s of the sums of the rows and of the columns --------------------
#
# The bytes are 64-bit words in rows of 512. Any change within one word changes the sums of its row and of its
# column; rows in another order change the row sums' CRC, words in another order within a row the column sums'.
# Reading the bytes once is all it costs: a CRC-32 of all of them takes about four times as long.


WORD = np.dtype("<u8")
ROW_WORDS = 512
ROW_BYTES = ROW_WORDS * WORD.itemsize
BLOCK_ROWS = 512
"""Rows whose two sums are taken together, so that the second finds them in the processor's cache."""


def checksum(data: np.ndarray) -> int:
    """64-bit checksum of a contiguous uint8 array; its length counts too."""
    num_rows, rest = divmod(data.nbytes, ROW_BYTES)
    blocks = [data[: num_rows * ROW_BYTES]]
    if rest:
        blocks.append(np.zeros(ROW_BYTES, np.uint8))
        blocks[1][:rest] = data[-rest:]
    row_sums, column_sums = [], np.zeros(ROW_WORDS, WORD)
    for words in (block.view(WORD).reshape(-1, ROW_WORDS) for block in blocks):
        for first in range(0, len(words), BLOCK_ROWS):
            rows = words[first : first + BLOCK_ROWS]
            row_sums.append(np.add.reduce(rows, axis=1))
            column_sums += np.add.reduce(rows, axis=0)
    of_length = zlib.crc32(str(data.nbytes).encode())
    of_rows = zlib.crc32(np.concatenate([np.zeros(0, WORD), *row_sums]).data, of_length)
    return of_rows << 32 | zlib.crc32(column_sums.data, of_length)
