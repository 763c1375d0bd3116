"""Weights -> buckets of bytes: gathers one bucket at a time and describes them all in a manifest.

The last published buckets may be kept for the differences of the next version, and their memory is used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.stored_tensors import Part, parts_of, stored_tensors
from transport.differences import encode
from transport.weights import (
    BUCKET_BYTES,
    ITEM_BYTES,
    TensorSpec,
    WeightManifest,
    bucket_sizes,
    checksum,
    plan_buckets,
)

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Gather = Callable[[Iterable[Tensor]], AbstractContextManager[None]]

MAX_KEPT = 2
"""Of the largest: one is filled while the receiver holds the one before."""


def publish_weights(
    causal_lm: Any,
    *,
    gathered: Gather,
    is_first_rank: bool,
    incarnation: int,
    version: int,
    dtype: str,
    golden_token_ids: Sequence[int],
    golden_log_probs: Sequence[float],
    max_bytes: int = BUCKET_BYTES,
    history: WeightHistory | None = None,
    memory: BucketMemory | None = None,
) -> Iterator[np.ndarray | WeightManifest]:
    """Yield the weights in `dtype` as uint8 buckets, then the manifest; on other ranks yield nothing.

    Every rank must exhaust the generator, since with ZeRO-3 each bucket is gathered by all of them. Tensors and
    names are those that `save_pretrained` would write, with persistent buffers; a tied output embedding is the
    input embedding and is sent once. At most one bucket of full parameters exists at a time, unless `history`
    keeps them: with it, every bucket of a version that has a base is followed by its coded difference. A bucket
    must not be written to: its checksum is computed while the receiver copies it.
    """
    tensors, parts = stored_tensors(causal_lm), parts_of(causal_lm)
    specs = plan_buckets((_laid_out(part, dtype) for part in parts), max_bytes=max_bytes)
    spec_of = {spec.name: spec for spec in specs}
    memory = BucketMemory() if memory is None else memory
    sizes, item_bytes = bucket_sizes(specs), ITEM_BYTES[dtype]
    checksums, difference_bytes = list[int](), list[int]()
    base_version = history.begin(incarnation, version, sizes) if history is not None and is_first_rank else None
    with ThreadPoolExecutor(max_workers=1) as beside:
        for index, size in enumerate(sizes):
            in_bucket = [part for part in parts if spec_of[part.shapes[0][0]].bucket == index]
            with gathered([tensors[name] for part in in_bucket for name in part.sources]):
                if not is_first_rank:
                    continue
                bucket = _fill(memory.take(size), in_bucket, causal_lm, tensors, spec_of)
            pending = beside.submit(checksum, bucket)
            yield bucket
            checksums.append(pending.result())
            difference = None if history is None else history.remember(index, bucket, item_bytes=item_bytes)
            del bucket, pending
            if difference is not None:
                difference_bytes.append(difference.nbytes)
                yield difference
    if is_first_rank:
        yield WeightManifest(
            incarnation=incarnation,
            version=version,
            dtype=dtype,
            tensors=specs,
            bucket_bytes=sizes,
            checksums=tuple(checksums),
            golden_token_ids=tuple(golden_token_ids),
            golden_log_probs=tuple(golden_log_probs),
            base_version=base_version,
            difference_bytes=tuple(difference_bytes),
        )


def _laid_out(part: Part, dtype: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of what a part makes."""
    return [(name, shape, "float32" if part.keeps_float32 else dtype) for name, shape in part.shapes]


def _fill(
    filled: np.ndarray,
    parts: Sequence[Part],
    causal_lm: Any,
    tensors: dict[str, Tensor],
    specs: dict[str, TensorSpec],
) -> np.ndarray:
    bucket = torch.from_numpy(filled)
    for part in parts:
        for name, values in part.of(causal_lm, tensors).items():
            spec = specs[name]
            there = bucket[spec.offset : spec.offset + spec.num_bytes]
            there.view(TORCH_DTYPES[spec.dtype]).view(spec.shape).copy_(values)
    return filled


class WeightHistory:
    """The version published last, which the next one's differences are taken to.

    Buckets are handed in in order, after `begin`.
    """

    def __init__(self, *, full_every: int) -> None:
        """Every `full_every`-th version has no differences."""
        self._full_every = full_every
        self._num_since_full = 0
        self._held: tuple[int, int] | None = None  # (incarnation, version) of `_buckets`; None: in part
        self._next: tuple[int, int] | None = None
        self._buckets: list[np.ndarray] = []
        self._sizes: tuple[int, ...] = ()

    def begin(self, incarnation: int, version: int, bucket_bytes: tuple[int, ...]) -> int | None:
        """Start the next version; returns the version it has differences to, or None if it has none.

        Weights of another incarnation are no base, nor are those of a version that was published only in part.
        """
        old, self._held, self._next = self._held, None, (incarnation, version)
        is_full = self._num_since_full + 1 >= self._full_every
        if old is None or old[0] != incarnation or self._sizes != bucket_bytes or is_full:
            self._num_since_full, self._buckets, self._sizes = 0, [], bucket_bytes
            return None
        self._num_since_full += 1
        return old[1]

    def remember(self, index: int, bucket: np.ndarray, *, item_bytes: int) -> np.ndarray | None:
        """Keep a bucket of the version that was begun; returns its coded difference, or None without a base.

        The caller must not change the bucket afterwards.
        """
        difference = None
        if index == len(self._buckets):
            self._buckets.append(bucket)
        else:
            difference = encode(self._buckets[index], bucket, item_bytes=item_bytes)
            self._buckets[index] = bucket
        if index + 1 == len(self._sizes):
            self._held = self._next
        return difference


class BucketMemory:
    """Hands out memory again once nobody holds what it gave before.

    The first touch of new memory takes twice as long as the copy into it, and on a busy host up to thirty times.
    """

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def take(self, num_bytes: int) -> np.ndarray:
        """A uint8 array of this size, of which nobody else has a view; its content is arbitrary."""
        for index, memory_bytes in enumerate(map(len, self._kept)):  # the smallest first
            if memory_bytes >= num_bytes and _references(self._kept, index) == _UNHELD:
                return self._kept[index][:num_bytes]
        memory = np.empty(num_bytes, np.uint8)  # NumPy asks for huge pages, PyTorch does not
        self._kept = sorted([*self._kept, memory], key=len)[-MAX_KEPT:]
        return memory[:]


def _references(arrays: list[np.ndarray], index: int) -> int:
    return sys.getrefcount(arrays[index])


_UNHELD = _references([np.empty(0, np.uint8)], 0)
"""Of an array that only the list holds; every view of an array refers to it."""
