"""Published buckets -> the engine of this process, from where they arrived: nothing is written, nothing is kept.

The object store has the bytes in this machine's shared memory already, and vLLM copies them into its parameters
from there. That does for an engine of one process, where no file (`actors/vllm/staging.py`) is needed by others.
"""

import itertools
import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from actors.vllm.staging import Staged, update_info
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest, check_buckets

PREFIX = "in-hand:"
_handed: dict[str, Sequence[np.ndarray]] = {}
_numbers = itertools.count()


class WeightsInHand:
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
