"""Memory for published buckets, one after the other and one version after the other."""

import sys

import numpy as np

MAX_KEPT = 2
"""Of the largest: one is filled while the receiver holds the one before."""


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
