"""A checksum of weights at the speed of memory: CRC-32s of the sums of their rows and of their columns.

The bytes are 64-bit words in rows of 512. Any change within one word changes the sums of its row and of its
column; rows in another order change the row sums' CRC, words in another order within a row the column sums'.
Reading the bytes once is all it costs: a CRC-32 of all of them takes about four times as long.
"""

import zlib

import numpy as np

WORD = np.dtype("<u8")
ROW_WORDS = 512
ROW_BYTES = ROW_WORDS * WORD.itemsize
BLOCK_ROWS = 512
"""Rows whose two sums are taken together, so that the second finds them in the processor's cache."""


def checksum(data: np.ndarray) -> int:
    """64-bit checksum of a contiguous uint8 array; its length counts too."""
    num_rows, rest = divmod(data.nbytes, ROW_BYTES)
    blocks = [data[: num_rows * ROW_BYTES]]
    if rest:
        blocks.append(np.zeros(ROW_BYTES, np.uint8))
        blocks[1][:rest] = data[-rest:]
    row_sums, column_sums = [], np.zeros(ROW_WORDS, WORD)
    for words in (block.view(WORD).reshape(-1, ROW_WORDS) for block in blocks):
        for first in range(0, len(words), BLOCK_ROWS):
            rows = words[first : first + BLOCK_ROWS]
            row_sums.append(np.add.reduce(rows, axis=1))
            column_sums += np.add.reduce(rows, axis=0)
    of_length = zlib.crc32(str(data.nbytes).encode())
    of_rows = zlib.crc32(np.concatenate([np.zeros(0, WORD), *row_sums]).data, of_length)
    return of_rows << 32 | zlib.crc32(column_sums.data, of_length)
