"""How the log-prob head goes through its positions: in chunks for the products, in blocks for what follows them.

    positions  |      chunk      |      chunk      |   chunk   |
    logits     | block | block | ...

A chunk's logits are one product in the model's dtype. They are read in float32 a block at a time: on CPUs so few
positions that a block stays in the cache, elsewhere enough of them to keep the device busy.

Shapes: T response tokens, C positions of one chunk, S positions of one block, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from settings.head_chunk import BLOCK_ELEMENTS, CACHED_BLOCK_ELEMENTS, chunk_positions


@dataclass(frozen=True)
class HeadLimits:
    """How the head works through its positions."""

    vocab_size: int
    """Ids >= this one are cut off: rows that pad the embedding are no tokens."""
    chunk_tokens: int | Literal["auto"] = "auto"
    """Positions per chunk: peak memory is `chunk_tokens` x `vocab_size` in the model's dtype. `auto`: as many as
    have about `settings.head_chunk.CHUNK_ELEMENTS` logits."""
    kept_bytes: int = 0
    """The logits of one chunk are kept from forward to backward, as backward needs that room in any case; so are
    those of others, up to so many bytes. The rest is computed again."""

    def chunks(self, num_positions: int) -> list[slice]:
        """Return the fewest chunks that keep to the limit, as even as they can be."""
        limit = chunk_positions(self.chunk_tokens, vocab_size=self.vocab_size)
        count = -(-num_positions // limit)
        size = -(-num_positions // max(count, 1))
        return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size or 1)]


class ChunkLogits:
    """Room for the logits of all chunks in turn, and those that stay in it until backward."""

    def __init__(self, chunks: list[slice], *, vocab_size: int, like: Tensor, kept_bytes: int) -> None:
        """Take no memory yet; tensors will be of the device and dtype of `like`."""
        self._vocab_size, self._like, self._bytes_left = vocab_size, like, kept_bytes
        self._num_positions = max((part.stop - part.start for part in chunks), default=0)
        self._shared_CV: Tensor | None = None
        self._in_shared: int | None = None
        self._kept: dict[int, Tensor] = {}
        self._chunks = chunks

    def room(self, part: slice) -> Tensor:
        """Return logits_CV to be written: its own where they may be kept, else the ones that all others use."""
        num_positions = part.stop - part.start
        num_bytes = num_positions * self._vocab_size * self._like.element_size()
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._kept[part.start] = self._like.new_empty(num_positions, self._vocab_size)
            return self._kept[part.start]
        if self._shared_CV is None:
            self._shared_CV = self._like.new_empty(self._num_positions, self._vocab_size)
        self._in_shared = part.start
        return self._shared_CV[:num_positions]

    def remaining(self) -> Iterator[tuple[slice, Tensor, bool]]:
        """Yield (chunk, logits_CV to be overwritten, whether they hold its logits), and free what was kept."""
        self._bytes_left = 0
        shared, self._in_shared = self._in_shared, None
        for part in sorted(self._chunks, key=lambda part: part.start != shared):
            if part.start == shared:
                assert self._shared_CV is not None, "a chunk cannot be in room that was not taken"
                yield part, self._shared_CV[: part.stop - part.start], True
            elif part.start in self._kept:
                yield part, self._kept.pop(part.start), True
            else:
                yield part, self.room(part), False
        self._shared_CV = self._in_shared = None


class Blocks:
    """Float copies of logits, one block of positions at a time, always in the same memory."""

    def __init__(self, *, vocab_size: int, dtype: torch.dtype, device: torch.device, is_cached: bool) -> None:
        """Blocks have `dtype`; `is_cached` makes them small where there is a cache to stay in."""
        elements = CACHED_BLOCK_ELEMENTS if is_cached and device.type == "cpu" else BLOCK_ELEMENTS
        self._num_positions = max(elements // vocab_size, 1)
        self._vocab_size, self._dtype, self._device = vocab_size, dtype, device
        self._copy_SV: Tensor | None = None
        self._spare_SV: Tensor | None = None

    def of(self, num_positions: int) -> Iterator[slice]:
        """Yield the blocks of a chunk."""
        for start in range(0, num_positions, self._num_positions):
            yield slice(start, min(start + self._num_positions, num_positions))

    def copy(self, logits_SV: Tensor) -> Tensor:
        """Return a float copy, which the next call overwrites."""
        if self._copy_SV is None or len(self._copy_SV) < len(logits_SV):
            self._copy_SV = self._new(len(logits_SV))
        return self._copy_SV[: len(logits_SV)].copy_(logits_SV)

    def spare(self, num_positions: int) -> Tensor:
        """Return room for another block, not initialised, which the next call returns again."""
        if self._spare_SV is None or len(self._spare_SV) < num_positions:
            self._spare_SV = self._new(num_positions)
        return self._spare_SV[:num_positions]

    def _new(self, num_positions: int) -> Tensor:
        return torch.empty(num_positions, self._vocab_size, dtype=self._dtype, device=self._device)
