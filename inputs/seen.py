"""A set of texts that takes 8 bytes for each: of texts seen before in data that do not fit into memory."""

import hashlib
from collections.abc import Sequence

import numpy as np


class Seen:
    """Which texts came before, by 64-bit digests: of ten million, two are taken for one with a chance of 3e-6.

    Kept as sorted arrays, of which a shorter one is merged into the one before it.
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def are_new(self, texts: Sequence[str]) -> list[bool]:
        """For each text whether it comes for the first time; from now on all were seen."""
        digests = np.array([_digest(text) for text in texts], dtype=np.uint64)
        unique, first = np.unique(digests, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for array in self._sorted:
            places = np.minimum(np.searchsorted(array, unique), len(array) - 1)
            known |= array[places] == unique
        is_new = np.zeros(len(digests), dtype=bool)
        is_new[first[~known]] = True
        self._add(unique[~known])
        return is_new.tolist()

    def _add(self, digests: np.ndarray) -> None:
        if not len(digests):
            return
        self._sorted.append(digests)
        while len(self._sorted) > 1 and len(self._sorted[-2]) <= 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
