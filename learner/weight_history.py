"""The last published buckets: what the differences of the next version are taken to."""

import numpy as np

from transport.differences import encode


class WeightHistory:
    """Remembers one version on the rank that publishes. Buckets are handed in in order, after `begin`."""

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
