"""Published buckets -> memory that the engine's processes load from: a shared file, or where the buckets arrived.

All engines of a node share the file: the first that needs a version fetches, checks and writes it, the others find
it and fetch nothing. An engine keeps the file of the version it holds until it has the next one, since differences
are applied to it.

An engine of one process that needs neither broadcasts nor differences needs no file either: vLLM copies tensors
into its parameters from the object store's shared memory.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from actors.vllm.shared_file import SharedFile, hold, remove_left_over
from transport.differences import decode
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest, check_bucket, check_buckets, check_num_buckets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staged:
    """A weight set that is ready to be loaded."""

    update: dict[str, Any]
    """The fields of `BucketUpdateInfo`."""
    fetch_s: float
    check_s: float
    bytes_fetched: int


class WeightCache:
    """The staged weights of one engine. Calls of `stage` must follow each other; `close` may come at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: tuple[WeightManifest, SharedFile] | None = None
        self._is_closed = False
        for path in remove_left_over():
            logger.info("removed %s, left over by a process that has ended", path)

    def stage(self, manifest: WeightManifest, source: WeightSource) -> Staged:
        """Make the file of a weight set, or find it; ValueError on a damaged bucket, and then nothing changed."""
        start = time.perf_counter()
        writing = _Writing(manifest, source, self._base_of(manifest), self._give_up)
        file = hold(manifest.key, writing.write, num_bytes=manifest.total_bytes, prepare=writing.prepare)
        seconds = time.perf_counter() - start
        self._replace((manifest, file))
        update = update_info(manifest, str(file.path))
        if not file.was_written_here:
            return Staged(update, fetch_s=seconds, check_s=0.0, bytes_fetched=0)
        fetch_s = writing.fetched_at - start
        return Staged(update, fetch_s, check_s=seconds - fetch_s, bytes_fetched=writing.bytes_fetched)

    def close(self) -> None:
        """Release the file and refuse further ones; the last engine of the node removes it."""
        self._is_closed = True
        self._replace(None)

    def _base_of(self, manifest: WeightManifest) -> np.ndarray | None:
        with self._lock:
            is_base = self._held is not None and has_base(manifest, self._held[0])
            return self._held[1].read() if self._held is not None and is_base else None

    def _give_up(self) -> SharedFile | None:
        """Stop holding a version; returns the file of the one held."""
        with self._lock:
            held, self._held = self._held, None
        return None if held is None else held[1]

    def _replace(self, new: tuple[WeightManifest, SharedFile] | None) -> None:
        with self._lock:
            old, self._held = self._held, None if self._is_closed else new
        if old is not None:
            old[1].release()
        if new is not None and self._is_closed:
            new[1].release()
            raise RuntimeError("the engine has ended: it was shut down")


class _Writing:
    """Fetches one weight set, checks it, and writes it."""

    def __init__(
        self,
        manifest: WeightManifest,
        source: WeightSource,
        base: np.ndarray | None,
        give_up: Callable[[], SharedFile | None],
    ) -> None:
        """`give_up` gives up the version held, and returns its file."""
        self._manifest = manifest
        self._source = source
        self._base = base
        self._give_up = give_up
        self._buckets: Sequence[np.ndarray] = ()
        self.bytes_fetched = 0
        self.fetched_at = 0.0

    def prepare(self) -> SharedFile | None:
        """Without a base, fetch and check everything; then the version held is given up, to be overwritten."""
        if self._base is not None:
            return None
        self._fetch()
        return self._give_up()

    def write(self, file: BinaryIO) -> None:
        """Write the file: of the base and the differences if that is less to fetch, else of the full buckets."""
        if self._base is not None:
            try:
                for index, bucket in enumerate(self._changed(self._base)):
                    check_bucket(self._manifest, index, bucket)
                    file.write(bucket.data)
            except ValueError as error:
                logger.warning("weights v%d are fetched in full: %s", self._manifest.version, error)
                file.seek(0)
                self._fetch()
            else:
                return
        for bucket in self._buckets:
            file.write(bucket.data)

    def _fetch(self) -> None:
        self._buckets = self._arrived(self._source.fetch())
        check_buckets(self._manifest, self._buckets)

    def _changed(self, base: np.ndarray) -> Iterator[np.ndarray]:
        differences = self._arrived(self._source.fetch_differences())
        check_num_buckets(self._manifest, differences)
        starts = bucket_starts(self._manifest)
        for difference, start, size in zip(differences, starts[:-1], self._manifest.bucket_bytes, strict=True):
            yield decode(base[start : start + size], difference)

    def _arrived(self, parts: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        self.fetched_at = time.perf_counter()
        self.bytes_fetched += sum(part.nbytes for part in parts)
        return parts


def has_base(manifest: WeightManifest, held: WeightManifest) -> bool:
    """Whether differences to the held weights were published, and are fewer bytes than the whole."""
    return (
        manifest.base_version is not None
        and (held.incarnation, held.version) == (manifest.incarnation, manifest.base_version)
        and (held.dtype, held.tensors) == (manifest.dtype, manifest.tensors)
        and manifest.total_difference_bytes < manifest.total_bytes
    )


def bucket_starts(manifest: WeightManifest) -> list[int]:
    """Offset of each bucket in the file, and the end of the last one."""
    return np.cumsum([0, *manifest.bucket_bytes]).tolist()


def stage_in_place(manifest: WeightManifest, source: WeightSource) -> Staged:
    """Fetch and check a weight set for an engine of this process; ValueError on a damaged bucket."""
    start = time.perf_counter()
    buckets = source.fetch()
    fetched = time.perf_counter()
    check_buckets(manifest, buckets)
    return Staged(
        update_info(manifest, buckets=buckets),
        fetch_s=fetched - start,
        check_s=time.perf_counter() - fetched,
        bytes_fetched=sum(bucket.nbytes for bucket in buckets),
    )


def update_info(
    manifest: WeightManifest, path: str | None = None, buckets: Sequence[np.ndarray] = ()
) -> dict[str, Any]:
    """The fields of `BucketUpdateInfo`: where the buckets are, and where in them each tensor is."""
    return {
        "path": path,
        "buckets": buckets,
        "bucket_bytes": manifest.bucket_bytes,
        "tensors": [(spec.name, spec.shape, spec.dtype, spec.bucket, spec.offset) for spec in manifest.tensors],
    }


def bucket_tensors(
    path: str | None, buckets: Sequence[np.ndarray], bucket_bytes: Sequence[int]
) -> Sequence[Tensor]:
    """The buckets of the mapped file, or those of this process, without a copy; read-only uint8."""
    if path is not None:
        mapped = torch.from_file(path, shared=False, size=sum(bucket_bytes), dtype=torch.uint8)
        return mapped.split(list(bucket_bytes))
    with warnings.catch_warnings():  # the object store's arrays are read-only, and nothing writes to them here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return [torch.from_numpy(bucket) for bucket in buckets]
