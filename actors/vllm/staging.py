"""Published buckets -> one file of this machine in shared memory, which the engine's processes map and load.

All engines of a node share the file: the first that needs a version fetches, checks and writes it, the others find
it and fetch nothing. An engine keeps the file of the version it holds until it has the next one, since differences
are applied to it.
"""

import itertools
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
    """What `FileUpdateInfo` takes."""
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
        writing = _Writing(manifest, source, self._base_of(manifest), self._let_go)
        file = hold(manifest.key, writing.write, num_bytes=manifest.total_bytes, prepare=writing.prepare)
        seconds = time.perf_counter() - start
        self._replace((manifest, file))
        update = update_info(manifest, str(file.path))
        if not file.was_written_here:
            return Staged(update, fetch_s=seconds, check_s=0.0, bytes_fetched=0)
        fetch_s = writing.fetched_at - start
        return Staged(update, fetch_s, check_s=seconds - fetch_s, bytes_fetched=writing.bytes_fetched)

    def close(self) -> None:
        """Let the file go, and refuse further ones; the last engine of the node removes it."""
        self._is_closed = True
        self._replace(None)

    def _base_of(self, manifest: WeightManifest) -> np.ndarray | None:
        with self._lock:
            is_base = self._held is not None and has_base(manifest, self._held[0])
            return self._held[1].read() if self._held is not None and is_base else None

    def _let_go(self) -> SharedFile | None:
        """Hold no version any more; returns the file of the one held."""
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
        let_go: Callable[[], SharedFile | None],
    ) -> None:
        """`let_go` gives up the version held."""
        self._manifest = manifest
        self._source = source
        self._base = base
        self._let_go = let_go
        self._buckets: Sequence[np.ndarray] = ()
        self.bytes_fetched = 0
        self.fetched_at = 0.0

    def prepare(self) -> SharedFile | None:
        """Without a base, fetch and check everything; then the version held is given up, to be overwritten."""
        if self._base is not None:
            return None
        self._fetch()
        return self._let_go()

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
    """Where each bucket begins in the file, and where the last one ends."""
    return np.cumsum([0, *manifest.bucket_bytes]).tolist()


def update_info(manifest: WeightManifest, path: str) -> dict[str, Any]:
    """What `FileUpdateInfo` takes: the buckets, and where in them each tensor lies."""
    return {
        "path": path,
        "dtype": manifest.dtype,
        "bucket_bytes": manifest.bucket_bytes,
        "tensors": [(spec.name, spec.shape, spec.bucket, spec.offset) for spec in manifest.tensors],
    }


# -- in hand -----------------------------------------------------------------------------------------------
# Published buckets -> the engine of this process, from where they arrived: nothing is written, nothing is kept.
#
# The object store has the bytes in this machine's shared memory already, and vLLM copies them into its parameters
# from there. That does for an engine of one process, where no file (`actors/vllm/staging.py`) is needed by others.


PREFIX = "in-hand:"
_handed: dict[str, Sequence[np.ndarray]] = {}
_numbers = itertools.count()


class ZeroCopyWeights:
    """Takes the weight sets of one engine, one after the other, as `WeightCache` does with a file."""

    def __init__(self) -> None:
        self._path = f"{PREFIX}{next(_numbers)}"

    def stage(self, manifest: WeightManifest, source: WeightSource) -> Staged:
        """Fetch and check a weight set; ValueError on a damaged bucket, and then there is nothing to load."""
        self.close()
        start = time.perf_counter()
        buckets = source.fetch()
        fetched = time.perf_counter()
        check_buckets(manifest, buckets)
        _handed[self._path] = buckets
        return Staged(
            update_info(manifest, self._path),
            fetch_s=fetched - start,
            check_s=time.perf_counter() - fetched,
            bytes_fetched=sum(bucket.nbytes for bucket in buckets),
        )

    def close(self) -> None:
        """Let go what was not loaded."""
        _handed.pop(self._path, None)


def buckets_at(path: str, bucket_bytes: Sequence[int]) -> Sequence[Tensor]:
    """The buckets that were handed over, once, or those of the mapped file; uint8, not to be written to."""
    if path.startswith(PREFIX):
        with warnings.catch_warnings():  # the object store's arrays are read-only, and nothing writes to them here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return [torch.from_numpy(bucket) for bucket in _handed.pop(path)]
    return torch.from_file(path, shared=False, size=sum(bucket_bytes), dtype=torch.uint8).split(list(bucket_bytes))
