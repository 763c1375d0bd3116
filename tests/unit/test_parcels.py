"""Slots share tables on their way, and each can be taken out again."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.parcels import PARCEL_BYTES, plan_parcels, repacked, tables_of_slots

SIZES = st.lists(st.integers(0, 2 * PARCEL_BYTES), max_size=40)


def table_of(*slots: int, num_samples: int = 2, num_bytes: int = 10) -> pa.Table:
    """Rows of these slots; a value tells slot and sample."""
    rows = [(slot, sample) for slot in slots for sample in range(num_samples)]
    values = [f"{slot}/{sample}".ljust(num_bytes) for slot, sample in rows]
    return pa.table({"slot": pa.array([slot for slot, _ in rows], pa.int64()), "value": values})


@given(SIZES)
def test_a_plan_holds_every_slot_once_in_order_and_no_parcel_of_several_is_too_large(sizes: list[int]) -> None:
    parcels = plan_parcels(enumerate(sizes))
    assert [slot for parcel in parcels for slot in parcel] == list(range(len(sizes)))
    assert all(len(parcel) == 1 or sum(sizes[slot] for slot in parcel) <= PARCEL_BYTES for parcel in parcels)


@given(SIZES)
def test_no_two_neighbours_of_a_plan_would_fit_into_one_parcel(sizes: list[int]) -> None:
    parcels = plan_parcels(enumerate(sizes))
    totals = [sum(sizes[slot] for slot in parcel) for parcel in parcels]
    firsts = [sizes[parcel[0]] for parcel in parcels]
    assert all(total + first > PARCEL_BYTES for total, first in zip(totals, firsts[1:], strict=False))


def test_slots_are_taken_out_in_the_order_asked_for() -> None:
    tables = [table_of(4, 1), table_of(7), table_of(0, 9, 3)]
    found = tables_of_slots(tables, [3, 7, 4])
    assert [table.column("slot").to_pylist() for table in found] == [[3, 3], [7, 7], [4, 4]]
    assert found[1] is tables[1]
    assert found[0].column("value").to_pylist() == ["3/0".ljust(10), "3/1".ljust(10)]
    assert tables_of_slots(tables) == tables


def test_a_slot_that_is_nowhere_is_named() -> None:
    with pytest.raises(ValueError, match=r"no table holds slot 5 \(tables hold \[1, 4\]\)"):
        tables_of_slots([table_of(4, 1)], [4, 5])


def test_repacked_tables_hold_their_parcels_and_nothing_else() -> None:
    tables = [table_of(*range(50), num_bytes=1000), table_of(60)]
    small, whole = repacked(tables, [[49, 60, 2], [60]])
    assert small.column("slot").to_pylist() == [49, 49, 60, 60, 2, 2]
    assert len(pickle.dumps(small)) < 10_000, "what it was cut from came along"
    assert whole is tables[1]
    assert repacked(tables) == tables
