"""Columns of lists -> flat arrays, without a Python object for each element.

>>> column = read_lists(pa.chunked_array([[[1, 2], [3]]], pa.list_(pa.int32())))
>>> column.values, column.lengths
(array([1, 2, 3], dtype=int32), array([2, 1]))
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, end to end."""

    values: np.ndarray
    starts: np.ndarray
    """int64 [rows + 1]: where each row begins, and where the last one ends."""

    @property
    def lengths(self) -> np.ndarray:
        """Elements of each row."""
        return np.diff(self.starts)

    def rows(self) -> list[np.ndarray]:
        """A view of each row."""
        bounds = self.starts.tolist()
        return [self.values[start:end] for start, end in pairwise(bounds)]

    def lists(self) -> list[list[Any]]:
        """The rows as Python lists."""
        values, bounds = self.values.tolist(), self.starts.tolist()
        return [values[start:end] for start, end in pairwise(bounds)]

    def sums(self) -> np.ndarray:
        """Of each row, the sum of its elements."""
        sums_before = starts_of(self.values)
        return sums_before[self.starts[1:]] - sums_before[self.starts[:-1]]


def read_lists(column: pa.ChunkedArray) -> Ragged:
    """The lists of a column without nulls: read-only, in the column's memory where that is in one piece."""
    return Ragged(flat(flattened(column)), starts_of(lengths(column)))


def flattened(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The elements of all lists."""
    if column.num_chunks == 1:  # as below, without the overhead of a compute function
        return pa.chunked_array([column.chunk(0).flatten()])
    return pc.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]


def flat(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column of numbers as one array."""
    parts = [column.chunk(index).to_numpy(zero_copy_only=False) for index in range(column.num_chunks)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, column.type.to_pandas_dtype())


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Elements of each list, or bytes of each binary value, of a column without nulls."""
    if pa.types.is_binary(column.type):
        return flat(pc.binary_length(column))  # pyright: ignore[reportAttributeAccessIssue]
    parts = [np.diff(column.chunk(index).offsets.to_numpy()) for index in range(column.num_chunks)]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int32), *parts])


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each of so many elements begins when they lie end to end, and where the last ends: int64."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
