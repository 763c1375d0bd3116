"""Which prompt a position of the order has: its source by the weights, its place by a permutation per epoch.

Everything is a function of position and seed, so a resumed run meets the same prompts.

    order = PromptOrder([100, 5], [3, 1], seed=0)
    order.place(7)   # (epoch of the source, source, index in the source)
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from inputs.prompt_table import PromptSequence
from inputs.rendering import Prompt

BLOCK = 4096
"""Positions, about, whose sources are worked out together."""


class PromptMixture(PromptSequence):
    """Prompts of several sources, one source after the other; with their sampling weights."""

    def __init__(self, parts: Sequence[Sequence[Prompt]], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.weights = list(weights)
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def look_up(self, index: int) -> Prompt:
        """The prompt at an index."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - self._ends[part]]


class PromptOrder:
    """The order of the prompts of one or several sources.

    Every source goes through all its prompts in epochs of its own, each in another order. Of the first N
    positions, a source of share w has w N, give or take 1 + w times the number of sources.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        self._lengths = list(lengths)
        self._schedule = Schedule(weights, seed=seed)
        self._seed = seed
        self._permutation = lru_cache(maxsize=2 * len(self._lengths))(self._draw)

    def place(self, position: int) -> tuple[int, int, int]:
        """Return (epoch, source, index) of a position."""
        part, number = self._schedule.source_at(position)
        epoch, place = divmod(number, self._lengths[part])
        return epoch, part, int(self._permutation(part, epoch)[place])

    def _draw(self, part: int, epoch: int) -> np.ndarray:
        seed = [self._seed, epoch, part] if part else [self._seed, epoch]
        return np.random.default_rng(seed).permutation(self._lengths[part])


class Schedule:
    """Sources by position so that every stretch has them in their shares.

    The j-th prompt of a source of share w is due at (j + phase) / w, with a phase derived from the seed; the
    order is that of the times. Positions are worked out in blocks of time, any of which can be looked up.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        self._shares = np.array(weights, dtype=float) / np.sum(weights)
        self._phases = np.random.default_rng([seed, len(weights)]).random(len(weights))
        self._block = lru_cache(maxsize=4)(self._work_out)

    def source_at(self, position: int) -> tuple[int, int]:
        """Return the source of a position, and how many positions before it have the same source."""
        if len(self._shares) == 1:
            return 0, position
        block = position // BLOCK
        while self._before(block).sum() > position:
            block -= 1
        while self._before(block + 1).sum() <= position:
            block += 1
        parts, numbers = self._block(block)
        place = position - int(self._before(block).sum())
        return int(parts[place]), int(numbers[place])

    def _before(self, block: int) -> np.ndarray:
        """How many prompts of each source are due before a block begins."""
        return np.maximum(0, np.ceil(self._shares * block * BLOCK - self._phases)).astype(np.int64)

    def _work_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        first, end = self._before(block), self._before(block + 1)
        numbers = [np.arange(start, stop) for start, stop in zip(first, end, strict=True)]
        parts = np.repeat(np.arange(len(numbers)), [len(each) for each in numbers])
        joined = np.concatenate(numbers)
        due = (joined + self._phases[parts]) / self._shares[parts]
        order = np.lexsort((parts, due))
        return parts[order], joined[order]
