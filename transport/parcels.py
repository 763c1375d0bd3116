"""Small slots travel together: one table for several of them, from the engine that made them to the learner.

What a table costs on its way hardly depends on its size while it is small, whether Ray carries it inside its
messages (below 100 KB) or in shared memory. A slot with more than `PARCEL_BYTES` travels alone, so that nobody
fetches what he does not use.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from transport.columns import flat

PARCEL_BYTES = 192 * 2**10


def plan_parcels(slot_bytes: Iterable[tuple[int, int]], *, max_bytes: int = PARCEL_BYTES) -> list[list[int]]:
    """Split (slot, bytes) pairs, in order, into lists of slots of at most `max_bytes` (or one slot) each.

    >>> plan_parcels([(4, 30), (5, 30), (9, 50)], max_bytes=64)
    [[4, 5], [9]]
    """
    parcels: list[list[int]] = []
    capacity = 0
    for slot, size in slot_bytes:
        if not parcels or size > capacity:
            parcels.append([])
            capacity = max_bytes
        parcels[-1].append(slot)
        capacity -= size
    return parcels


def tables_of_slots(tables: Sequence[pa.Table], slots: Sequence[int] | None = None) -> list[pa.Table]:
    """The rows of these slots, a table for each, in their order; with None the tables as they are.

    The results share memory with `tables`: `repacked` makes tables that may be sent. ValueError names a slot
    that no table holds.
    """
    if slots is None:
        return list(tables)
    places: dict[int, tuple[pa.Table, int, int]] = {}
    for table in tables:
        column = flat(table.column("slot"))
        bounds = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
        for first, end in pairwise(bounds if len(column) else ()):
            places[int(column[first])] = (table, first, end)
    missing = [slot for slot in slots if slot not in places]
    if missing:
        raise ValueError(f"no table holds slot {missing[0]} (tables hold {sorted(places)[:8]})")
    return [_part(*places[slot]) for slot in slots]


def repacked(tables: Sequence[pa.Table], parcels: Sequence[Sequence[int]] | None = None) -> list[pa.Table]:
    """A table for each parcel, with the rows of its slots in order and nothing else; with None the tables."""
    if parcels is None:
        return list(tables)
    pieces = iter(tables_of_slots(tables, [slot for parcel in parcels for slot in parcel]))
    packed: list[pa.Table] = []
    for parcel in parcels:
        parts = [next(pieces) for _ in parcel]
        is_whole = len(parts) == 1 and any(parts[0] is table for table in tables)
        # A slice would take all it was cut from along: `take` copies.
        packed.append(parts[0] if is_whole else _copied(pa.concat_tables(parts)))
    return packed


def _part(table: pa.Table, first: int, end: int) -> pa.Table:
    return table if end - first == table.num_rows else table.slice(first, end - first)


def _copied(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.arange(table.num_rows)))
