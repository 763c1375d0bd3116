"""How a published weight set reaches the engines: what goes along with a call of `load_weights`.

The learner's first rank yields buckets; a transport turns what came of them into a `WeightSource`, which travels
to the engine's worker and gives the bytes there, when and if they are needed: an engine whose node has them
already asks for nothing. The manifest (identity, checksums, golden log-probs) is the same for every transport.

A broadcast (`controller/broadcasts.py`) brings the bytes to the nodes before: the source remains the object
store's, and serves whoever was not reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from transport.weights import WeightManifest

T = TypeVar("T")


class WeightSource(Protocol):
    """Gives one weight set where it is needed. It pickles, and both calls may block for long."""

    def fetch(self) -> Sequence[np.ndarray]:
        """The full buckets, read-only uint8 arrays in the manifest's order."""
        ...

    def fetch_differences(self) -> Sequence[np.ndarray]:
        """The coded differences (`transport/differences.py`) of a manifest that has them, in the same order."""
        ...


@dataclass(frozen=True)
class ObjectStoreSource:
    """A weight set in Ray's object store. References are nested, so that Ray fetches nothing by itself."""

    buckets: tuple[Any, ...]  # ray.ObjectRef of each bucket
    differences: tuple[Any, ...]  # of each coded difference, or none
    timeout_s: float

    @classmethod
    def of(cls, manifest: WeightManifest, refs: Sequence[Any], timeout_s: float) -> "ObjectStoreSource":
        """Sort what the learner yielded: each bucket is followed by its difference where there are any."""
        buckets = buckets_of(manifest, refs)
        differences = () if len(refs) == len(buckets) else tuple(refs[1::2])
        return cls(tuple(buckets), differences, timeout_s)

    def fetch(self) -> Sequence[np.ndarray]:
        """Bring the buckets to this node, without a further copy; GetTimeoutError after `timeout_s`."""
        return self._get(self.buckets)

    def fetch_differences(self) -> Sequence[np.ndarray]:
        """Bring the differences to this node."""
        return self._get(self.differences)

    def _get(self, refs: tuple[Any, ...]) -> list[np.ndarray]:
        import ray  # a local source needs no Ray

        return ray.get(list(refs), timeout=self.timeout_s)


def buckets_of(manifest: WeightManifest, parts: Sequence[T]) -> Sequence[T]:
    """The buckets among what the learner yielded before the manifest; ValueError if there are more or fewer."""
    num_yields = 1 if manifest.base_version is None else 2
    if len(parts) != num_yields * len(manifest.bucket_bytes):
        raise ValueError(
            f"weights v{manifest.version}: {len(parts)} parts for {len(manifest.bucket_bytes)} buckets"
        )
    return parts[::num_yields]


SourceOf = Callable[[WeightManifest, Sequence[Any], float], WeightSource]

TRANSPORTS: dict[str, SourceOf] = dict.fromkeys(("object_store", "gloo", "nccl"), ObjectStoreSource.of)
"""By `weights.transport`: makes the source of a manifest, the learner's other yields, and a limit in seconds."""
