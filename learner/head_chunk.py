"""How many positions the learner's log-prob head takes at a time: for it, and for estimates of its memory."""

from typing import Literal

CHUNK_ELEMENTS = 2**27
"""Logits of a chunk whose size is not given: 256 MiB in bfloat16, 883 positions of a vocabulary of 151,936."""
BLOCK_ELEMENTS, CACHED_BLOCK_ELEMENTS = 2**25, 2**20
"""Logits that are read in float32 at a time, and on CPUs, where they must not leave the cache: 4 MiB."""
MIN_CHUNK_TOKENS = 64
"""Fewer positions of a very large vocabulary would be read faster than the weight they are multiplied with."""


def chunk_positions(setting: int | Literal["auto"], *, vocab_size: int) -> int:
    """Return the largest number of positions of a chunk."""
    return max(CHUNK_ELEMENTS // vocab_size, MIN_CHUNK_TOKENS) if setting == "auto" else setting
