"""Receives broadcast weights in an engine's process, concurrently with generation, into the node's shared file.

The engine is not interrupted: when told to load it finds the complete file, as do all engines of the node
(`actors/vllm/staging.py`), and fetches nothing. A set that could not be received is fetched instead.
"""

import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from actors.vllm.shared_file import SharedFile, hold
from transport.collective import BroadcastGroup, Rendezvous
from transport.weights import WeightManifest, check_bucket


class WeightReceiver:
    """One engine's place in the group. `join` and `receive` block and must follow each other."""

    def __init__(self) -> None:
        self._group: BroadcastGroup | None = None
        self._timeout_s = 0.0
        self._held: tuple[WeightManifest, SharedFile] | None = None
        self._lock = threading.Lock()  # `release` comes from the thread of the engine's calls

    def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """Leave the previous group and join this one; blocks until all members have joined."""
        self._leave()
        self._timeout_s = rendezvous.timeout_s
        self._group = BroadcastGroup(rendezvous, rank)

    def receive(self, manifest: WeightManifest) -> float:
        """Receive one weight set and write the node's file; returns the seconds it took.

        ValueError on a damaged bucket, TimeoutError or RuntimeError if it does not arrive; then there is no file.
        """
        start = time.monotonic()
        if self._group is None:
            raise RuntimeError("this engine is in no group")
        try:
            self._replace((manifest, self._written(manifest, start + self._timeout_s)))
        except BaseException:
            self._leave()  # it does not know how much of the set the others have got
            raise
        return time.monotonic() - start

    def release(self, manifest: WeightManifest) -> None:
        """Release the file of a set that the engine now holds itself, or failed to load."""
        self._replace(None, only=manifest)

    def close(self) -> None:
        """Leave the group and release the file."""
        self._leave()
        self._replace(None)

    def _written(self, manifest: WeightManifest, deadline: float) -> SharedFile:
        """Receive every bucket, even if the node has the file already: a broadcast needs all its members."""
        buckets = self._buckets(manifest, deadline)

        def write(file: BinaryIO) -> None:
            for bucket in buckets:
                file.write(bucket.data)

        file = hold(manifest.key, write, num_bytes=manifest.total_bytes, wait_s=0.0)
        for _ in buckets:
            pass
        return file

    def _buckets(self, manifest: WeightManifest, deadline: float) -> Iterator[np.ndarray]:
        assert self._group is not None
        for index, size in enumerate(manifest.bucket_bytes):
            bucket = np.empty(size, np.uint8)
            self._group.broadcast(bucket, deadline)
            check_bucket(manifest, index, bucket)
            yield bucket

    def _replace(
        self, new: tuple[WeightManifest, SharedFile] | None, *, only: WeightManifest | None = None
    ) -> None:
        """Hold another file, or none; with `only`, replace nothing but the file of that set."""
        with self._lock:
            old = self._held
            if only is not None and (old is None or old[0] != only):
                return
            self._held = new
        if old is not None:
            old[1].release()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
