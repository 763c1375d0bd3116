"""A weight set that is in the test's process already, as a `WeightSource`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BucketsInPlace:
    """A weight set that is in this process already."""

    buckets: Sequence[np.ndarray]
    differences: Sequence[np.ndarray] = ()

    def fetch(self) -> Sequence[np.ndarray]:
        """The buckets as they are."""
        return self.buckets

    def fetch_differences(self) -> Sequence[np.ndarray]:
        """The differences as they are."""
        return self.differences
