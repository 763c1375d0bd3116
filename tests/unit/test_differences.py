"""A difference of two buckets gives the new one back to the bit, in the smallest of its codings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transport.differences import BITMAP, HEADER_BYTES, INDICES, WHOLE, decode, encode

pytestmark = pytest.mark.timeout(60)

DTYPES = {2: torch.bfloat16, 4: torch.float32}


def bucket(values: torch.Tensor) -> np.ndarray:
    return values.view(torch.uint8).numpy()


@given(
    seed=st.integers(0, 2**31),
    num_items=st.integers(0, 400),
    share=st.sampled_from([0.0, 0.01, 0.03, 0.2, 0.9, 1.0]),
    item_bytes=st.sampled_from([2, 4]),
)
def test_a_changed_tensor_comes_back_to_the_bit(seed: int, num_items: int, share: float, item_bytes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(num_items, generator=generator).to(DTYPES[item_bytes])
    is_changed = torch.rand(num_items, generator=generator) < share
    new = torch.where(is_changed, torch.randn(num_items, generator=generator).to(old.dtype), old)
    difference = encode(bucket(old), bucket(new), item_bytes=item_bytes)
    assert decode(bucket(old), difference).tobytes() == bucket(new).tobytes()
    assert difference.nbytes <= HEADER_BYTES + new.nbytes


@given(data=st.data(), item_bytes=st.sampled_from([2, 4]), num_items=st.integers(0, 60))
def test_any_bytes_come_back_to_the_bit(data: st.DataObject, item_bytes: int, num_items: int) -> None:
    size = num_items * item_bytes
    old, new = (np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8) for _ in range(2))
    assert decode(old, encode(old, new, item_bytes=item_bytes)).tobytes() == new.tobytes()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_zeros_of_both_signs_and_numbers_that_are_none_are_kept_apart(dtype: torch.dtype) -> None:
    old = torch.tensor([0.0, -0.0, float("nan"), 1.0, float("inf")], dtype=dtype)
    new = torch.tensor([-0.0, 0.0, float("nan"), float("nan"), -float("inf")], dtype=dtype)
    difference = encode(bucket(old), bucket(new), item_bytes=dtype.itemsize)
    assert decode(bucket(old), difference).tobytes() == bucket(new).tobytes()


SIZES = [
    (0, INDICES, 0),
    (31, INDICES, 31 * 6),
    (32, BITMAP, 125 + 32 * 2),
    (937, BITMAP, 125 + 937 * 2),
    (938, WHOLE, 2000),
]
"""Changed ones of 1,000 elements of 2 bytes, their coding, and its bytes."""


@pytest.mark.parametrize(("num_changed", "coding", "num_bytes"), SIZES)
def test_the_smallest_coding_is_chosen(num_changed: int, coding: int, num_bytes: int) -> None:
    old = np.zeros(2000, np.uint8)
    new = old.copy()
    new[: 2 * num_changed : 2] = 1
    difference = encode(old, new, item_bytes=2)
    assert (difference[0] % 16, difference.nbytes) == (coding, HEADER_BYTES + num_bytes)
    assert decode(old, difference).tobytes() == new.tobytes()


def test_the_base_is_left_as_it_is_and_may_be_read_only() -> None:
    old = np.arange(40, dtype=np.uint8)
    new = old.copy()
    new[7] = 99
    old.flags.writeable = False
    before = old.tobytes()
    assert decode(old, encode(old, new, item_bytes=4)).tobytes() == new.tobytes()
    assert old.tobytes() == before


def test_a_difference_that_does_not_fit_its_base_is_an_error() -> None:
    difference = encode(np.zeros(40, np.uint8), np.ones(40, np.uint8), item_bytes=4)
    with pytest.raises(ValueError, match="does not fit a bucket of 44"):
        decode(np.zeros(44, np.uint8), difference)
    for damaged in (difference[:10], np.full(60, 255, np.uint8)):
        with pytest.raises(ValueError, match="a coded difference is damaged"):
            decode(np.zeros(40, np.uint8), damaged)
