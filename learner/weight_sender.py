"""Sends published weights to the engines of a group, from the learner's first rank."""

import time
from collections.abc import Iterable, Iterator

import numpy as np

from transport.collective import BroadcastGroup, Rendezvous
from transport.weight_sources import buckets_of
from transport.weights import WeightManifest


class WeightSender:
    """Rank 0 of the group. It keeps one published set, in host memory, until it is sent or the next one comes."""

    def __init__(self) -> None:
        self._group: BroadcastGroup | None = None
        self._timeout_s = 0.0
        self._kept: tuple[WeightManifest, list[np.ndarray]] | None = None

    def keeping(self, published: Iterable[np.ndarray | WeightManifest]) -> Iterator[np.ndarray | WeightManifest]:
        """Yield what is published, as it is, and keep its buckets."""
        self._kept = None
        parts: list[np.ndarray] = []
        for part in published:
            if isinstance(part, WeightManifest):
                self._kept = part, list(buckets_of(part, parts))
            else:
                parts.append(part)
            yield part

    def join(self, rendezvous: Rendezvous) -> None:
        """Leave the group of before and wait for the members of this one; blocks until all have come."""
        self._leave()
        self._timeout_s = rendezvous.timeout_s
        self._group = BroadcastGroup(rendezvous, rank=0)

    def send(self, incarnation: int, version: int) -> float:
        """Broadcast the kept set, which must be this one, and forget it; returns the seconds it took."""
        start = time.monotonic()
        kept, self._kept = self._kept, None
        if self._group is None or kept is None:
            raise RuntimeError("there is no group, or nothing to send")
        manifest, buckets = kept
        if (manifest.incarnation, manifest.version) != (incarnation, version):
            raise ValueError(f"weights v{version} are not kept: v{manifest.version} are")
        try:
            for bucket in buckets:
                self._group.broadcast(bucket, start + self._timeout_s)
        except BaseException:
            self._leave()
            raise
        return time.monotonic() - start

    def forget(self) -> None:
        """Keep nothing: this set is not sent."""
        self._kept = None

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
