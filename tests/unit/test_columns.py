"""Columns of lists as flat arrays: of any cut into chunks, with empty lists, and from the middle of a table."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.columns import lengths, read_lists

pytestmark = pytest.mark.timeout(20)

INTEGERS = pa.list_(pa.int32())
LISTS = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=8)


@given(st.lists(LISTS, max_size=4), st.integers(0, 3))
@settings(deadline=None)
def test_a_column_is_read_as_its_lists_however_it_is_cut(chunks: list[list[list[int]]], skipped: int) -> None:
    column = pa.chunked_array([pa.array(chunk, INTEGERS) for chunk in chunks], INTEGERS).slice(skipped)
    expected = [each for chunk in chunks for each in chunk][skipped:]
    found = read_lists(column)
    assert found.lists() == expected
    assert [row.tolist() for row in found.rows()] == expected
    assert found.lengths.tolist() == list(map(len, expected))
    assert found.sums().tolist() == list(map(sum, expected))
    assert found.values.dtype == np.int32


def test_a_column_in_one_piece_is_not_copied() -> None:
    array = pa.array([[1, 2], [3]], INTEGERS)
    found = read_lists(pa.chunked_array([array]))
    assert np.shares_memory(found.values, array.values.to_numpy())
    assert not found.values.flags.writeable


def test_binary_values_are_measured_in_bytes() -> None:
    assert lengths(pa.chunked_array([pa.array([b"abc", b""], pa.binary())])).tolist() == [3, 0]
