"""The checksum of weights: whatever is changed, moved, cut off or added gives another one."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.weights import BLOCK_ROWS, ROW_BYTES, checksum

pytestmark = pytest.mark.timeout(20)

SIZES = st.sampled_from([1, 7, 8, 9, ROW_BYTES - 1, ROW_BYTES, ROW_BYTES + 3, 5 * ROW_BYTES + 100])


def random_bytes(num_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8)


@given(SIZES, st.integers(0, 2**16), st.integers(1, 255))
@settings(deadline=None)
def test_any_changed_byte_is_found(num_bytes: int, place: int, mask: int) -> None:
    data = random_bytes(num_bytes)
    before = checksum(data)
    data[place % num_bytes] ^= mask
    assert checksum(data) != before


@given(SIZES, st.integers(0, 2**16), st.integers(1, 9))
@settings(deadline=None)
def test_bytes_cut_off_or_added_are_found_also_zeros(num_bytes: int, cut: int, more: int) -> None:
    data = random_bytes(num_bytes)
    assert checksum(data[: cut % num_bytes]) != checksum(data)
    assert checksum(np.concatenate([data, np.zeros(more, np.uint8)])) != checksum(data)


@pytest.mark.parametrize("size", [8, 64, ROW_BYTES, BLOCK_ROWS * ROW_BYTES])
def test_parts_in_another_order_are_found(size: int) -> None:
    data = random_bytes(4 * BLOCK_ROWS * ROW_BYTES)
    swapped = data.copy()
    swapped[:size], swapped[size : 2 * size] = data[size : 2 * size], data[:size]
    assert checksum(swapped) != checksum(data)


@pytest.mark.parametrize("start", [0, 512, ROW_BYTES])
def test_a_page_of_zeros_or_of_another_place_is_found(start: int) -> None:
    data = random_bytes(64 * ROW_BYTES)
    for wrong in (np.zeros(4096, np.uint8), data[20 * ROW_BYTES :][:4096].copy()):
        damaged = data.copy()
        damaged[start : start + 4096] = wrong
        assert checksum(damaged) != checksum(data)


def test_it_depends_on_the_bytes_alone_not_on_where_they_lie() -> None:
    data = random_bytes(3 * ROW_BYTES + 5)
    shifted = np.concatenate([np.zeros(3, np.uint8), data])[3:]
    shifted.flags.writeable = False
    assert checksum(shifted) == checksum(data)
    assert 0 <= checksum(data) < 2**64


def test_the_sums_of_a_small_array_are_those_written_down() -> None:
    words = np.arange(3, dtype="<u8")
    columns = np.concatenate([words, np.zeros(509, "<u8")])
    of_length = zlib.crc32(b"24")
    rows = np.array([3], "<u8")
    assert checksum(words.view(np.uint8)) == zlib.crc32(rows.data, of_length) << 32 | zlib.crc32(
        columns.data, of_length
    )
