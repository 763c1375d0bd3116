"""Every slot is in the valid ledger once, also after lines of it were damaged or lost."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from records.checkpoints import Frontier
from records.files import read_rows
from records.ledger import Ledger, valid_ledger


def uids_of(slots: list[int]) -> list[str]:
    """As a prompt source gives them, two samples a slot."""
    return [f"{slot}-0-p{slot}-{sample}" for slot in slots for sample in (0, 1)]


def ledger_of(path: Path, batches: dict[int, list[int]]) -> Ledger:
    """A ledger of these steps."""
    ledger = Ledger(path / "ledger.jsonl")
    for step, slots in batches.items():
        ledger.add(step, uids_of(slots))
    return ledger


def trained(path: Path) -> list[int]:
    """Slots in the valid ledger, as often as they are there."""
    return sorted(int(uid.split("-")[0]) for uids in valid_ledger(path).values() for uid in uids[::2])


def replace_line(ledger: Ledger, index: int, line: bytes) -> None:
    lines = ledger.path.read_bytes().split(b"\n")
    lines[index] = line
    ledger.path.write_bytes(b"\n".join(lines))


BATCHES = {1: [0, 2], 2: [1, 5], 3: [3, 4]}
FRONTIER = Frontier(3, 6, ())


def test_a_damaged_line_is_set_aside_and_its_row_made_anew(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, BATCHES)
    replace_line(ledger, 1, b"\0\0\0{")
    assert [row["step"] for row in read_rows(ledger.path)] == [1, 3]
    assert valid_ledger(ledger.path).keys() == {1, 3}
    assert ledger.mend() == [2]
    assert (tmp_path / "ledger.damaged").read_bytes() == b"\0\0\0{\n"
    assert ledger.mend() == []
    assert ledger.restore(FRONTIER, uids_of) == [2]
    assert read_rows(ledger.path)[-1] == {"step": 2, "uids": uids_of([1, 5]), "restored": True}
    assert list(valid_ledger(ledger.path)) == [1, 2, 3]
    assert trained(ledger.path) == list(range(6))


def test_lines_that_are_json_but_no_rows_of_the_ledger_are_damaged_too(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, BATCHES)
    replace_line(ledger, 0, b"5")
    replace_line(ledger, 2, b'{"step": "3", "uids": []}')
    assert ledger.mend() == [1, 3]
    assert ledger.restore(FRONTIER, uids_of) == [1, 3]
    assert trained(ledger.path) == list(range(6))


def test_a_whole_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, BATCHES)
    before = ledger.path.read_bytes()
    assert ledger.mend() == []
    assert ledger.restore(FRONTIER, uids_of) == []
    assert ledger.path.read_bytes() == before


def test_a_lost_ledger_is_made_anew_from_the_frontier(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.mend() == []
    assert ledger.restore(Frontier(2, 3, (5,)), uids_of) == [1, 2]
    assert trained(ledger.path) == [0, 1, 2, 5]
    assert ledger.restore(Frontier(), uids_of) == []


def test_rows_of_batches_of_other_sizes_are_made_anew_with_their_sizes(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, {1: [0, 2], 2: [1, 5], 3: [3], 4: [4]})
    frontier = Frontier(4, 6, (), ((0, 2), (2, 1)))
    assert ledger.restore(frontier, uids_of) == []
    replace_line(ledger, 1, b"{")
    replace_line(ledger, 3, b"{")
    assert ledger.mend() == [2, 4]
    assert ledger.restore(frontier, uids_of) == [2, 4]
    assert ledger.valid()[2] == uids_of([1, 4])
    assert ledger.valid()[4] == uids_of([5])
    assert trained(ledger.path) == list(range(6))


def test_a_row_of_a_voided_attempt_whose_rollback_was_lost_does_not_count(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, BATCHES)
    ledger.roll_back_to(1)
    ledger.add(2, uids_of([3, 5]))
    ledger.add(3, uids_of([1, 4]))
    replace_line(ledger, 3, b"{damaged")  # the rollback
    replace_line(ledger, 4, b"{damaged")  # step 2 of the new attempt: that of the old one would count now
    assert ledger.mend() == [4, 5]
    ledger.roll_back_to(3)
    assert ledger.restore(FRONTIER, uids_of) == [2]
    assert valid_ledger(ledger.path)[2] == uids_of([3, 5])
    assert trained(ledger.path) == list(range(6))


def test_rows_that_are_not_on_disk_yet_count(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, {1: [0, 2]})
    ledger.rows._kept.append(json.dumps({"step": 2, "uids": uids_of([1, 3])}).encode() + b"\n")
    assert ledger.valid().keys() == {1, 2}
    ledger.roll_back_to(1)
    assert valid_ledger(ledger.path).keys() == {1}


@settings(deadline=None)  # it waits for the disk
@given(st.lists(st.integers(0, 6), unique=True), st.permutations(range(8)))
def test_whatever_rows_are_lost_every_slot_is_in_the_ledger_once_again(
    tmp_path_factory: pytest.TempPathFactory, lost: list[int], order: list[int]
) -> None:
    """Four steps, a fall-back to step 2, two steps again: any of the lines may be lost."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl")
    batches = {step + 1: sorted(order[2 * step : 2 * step + 2]) for step in range(4)}
    for step in (1, 2):
        ledger.add(step, uids_of(batches[step]))
    for step in (3, 4):
        ledger.add(step, uids_of([100 + step, 200 + step]))
    ledger.roll_back_to(2)
    for step in (3, 4):
        ledger.add(step, uids_of(batches[step]))
    for index in lost:
        replace_line(ledger, index, b"{")
    ledger.mend()
    ledger.roll_back_to(4)
    ledger.restore(Frontier(4, 8, ()), uids_of)
    assert list(valid_ledger(ledger.path)) == [1, 2, 3, 4]
    assert trained(ledger.path) == list(range(8))


def test_a_fall_back_late_in_a_long_run_takes_little_memory(tmp_path: Path) -> None:
    ledger, num_steps, size = Ledger(tmp_path / "ledger.jsonl"), 1000, 200
    text = "".join(
        json.dumps({"step": step, "uids": [f"{slot}-0-p-0" for slot in range((step - 1) * size, step * size)]})
        + "\n"
        for step in range(1, num_steps + 1)
    )
    ledger.path.write_text(text)
    tracemalloc.start()
    try:
        assert ledger.mend() == []
        ledger.roll_back_to(num_steps - 10)
        assert ledger.restore(Frontier(num_steps - 10, (num_steps - 10) * size), lambda slots: []) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20 < len(text)
    assert len(ledger.valid()) == num_steps - 10


@pytest.mark.parametrize("batches", [{1: [0, 2], 2: [1, 5], 3: [3, 5]}, {1: [0, 2], 2: [1, 5], 3: [3, 9]}])
def test_a_row_that_contradicts_an_older_one_or_the_frontier_is_made_anew(
    tmp_path: Path, batches: dict[int, list[int]]
) -> None:
    ledger = ledger_of(tmp_path, batches)
    assert ledger.restore(FRONTIER, uids_of)
    assert trained(ledger.path) == list(range(6))
