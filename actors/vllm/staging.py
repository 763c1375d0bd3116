"""Stages published buckets as one file in shared memory for the engine's processes to map."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.weights import WeightManifest

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def staged_file(manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Write the buckets one after the other; yields the update info for `FileUpdateInfo`, then removes the file.

    Falls back to the temporary folder where shared memory has no room (containers often have 64 MB).
    """
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * manifest.total_bytes
    handle, path = tempfile.mkstemp(prefix="poweropd-weights-", dir=SHARED_MEMORY if has_room else None)
    try:
        with os.fdopen(handle, "wb") as file:
            for bucket in buckets:
                file.write(bucket.data)
        yield _update_info(manifest, path)
    finally:
        Path(path).unlink(missing_ok=True)


def _update_info(manifest: WeightManifest, path: str) -> dict[str, Any]:
    starts = np.cumsum([0, *manifest.bucket_bytes])
    tensors = [(spec.name, spec.shape, int(starts[spec.bucket]) + spec.offset) for spec in manifest.tensors]
    return {"path": path, "dtype": manifest.dtype, "num_bytes": manifest.total_bytes, "tensors": tensors}
