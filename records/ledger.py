"""The ledger of a run: which slots every step was trained on, each once. What counts is in its valid rows.

{"step": 3, "uids": [...]}                      step 3 was trained on these
{"rollback_to": 2}                              every row above step 2 is void
{"step": 3, "uids": [...], "restored": true}    the row was lost, and made anew from a checkpoint
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from records.checkpoints import Frontier, fsync
from records.files import RowFile, complete_lines, each_complete_line, has, parse_row
from records.ownership import Ownership

Row = dict[str, Any]


class Ledger:
    """Appends to `ledger.jsonl`; no row is lost while this process lives, whatever the disk does."""

    def __init__(self, path: Path, owner: Ownership | None = None) -> None:
        """`owner`: only while it holds the file's folder is anything written there (else NotOwnerError)."""
        self._owner = owner or Ownership(path.parent)
        self.rows = RowFile(path, check=self._owner.check)

    @property
    def path(self) -> Path:
        """The file."""
        return self.rows.path

    def add(self, step: int, uids: Sequence[str], *, was_skipped: bool = False) -> None:
        """Append the uids of a step; one that was skipped used them up without training."""
        skipped = {"skipped": True} if was_skipped else {}
        self.rows.append({"step": step, "uids": list(uids), **skipped})

    def valid(self) -> dict[int, list[str]]:
        """The uids trained in each step, also those that are not on disk yet."""
        return {row["step"]: row["uids"] for row in self._valid_rows()}

    def roll_back_to(self, step: int) -> None:
        """Void the rows above `step`, if there are any: those slots are trained again."""
        if max(self._place_of_step(), default=0) > step:
            self.rows.append({"rollback_to": step})

    def mend(self) -> list[int]:
        """Set damaged lines aside, in `ledger.damaged`; returns their numbers (from 1). A torn one is dropped."""
        numbered = enumerate(each_complete_line(self.path), start=1)
        damaged = [number for number, line in numbered if line and not is_ledger_row(parse_row(line))]
        if damaged:
            lines = complete_lines(self.path)
            with self.path.with_suffix(".damaged").open("ab") as aside:
                self._owner.check()
                aside.writelines(lines[number - 1] + b"\n" for number in damaged)
                os.fsync(aside.fileno())
            good = [line for number, line in enumerate(lines, start=1) if line and number not in damaged]
            self._owner.replace(self.path, b"".join(line + b"\n" for line in good))
            fsync(self.path.parent)
        return damaged

    def restore(self, frontier: Frontier, uids_of: Callable[[list[int]], list[str]]) -> list[int]:
        """Make the rows anew that should be there at a checkpoint's frontier and are not; returns their steps.

        Call it after rolling back to the frontier. `uids_of(slots)` gives the uids of slots, in their order. Which
        of several lost steps a slot belonged to is not known: they share what is left in order.
        """
        version = frontier.version
        if version == 0 or self._holds(frontier):
            return []
        left = {*range(frontier.lowest_untrained), *frontier.trained_above}
        sizes = frontier.batch_sizes()
        missing = set(range(1, version + 1))
        for row in reversed(self._valid_rows()):  # of rows that contradict each other the newest counts
            slots = slots_of(row["uids"])
            if row["step"] in missing and len(slots) == sizes[row["step"] - 1] and slots <= left:
                left -= slots
                missing.remove(row["step"])
        rest, steps = iter(sorted(left)), sorted(missing)
        for step in steps:
            batch = [*islice(rest, sizes[step - 1])]
            self.rows.append({"step": step, "uids": uids_of(batch), "restored": True})
        return steps

    def _holds(self, frontier: Frontier) -> bool:
        """Whether the valid rows up to a frontier are those of its steps and hold each of its slots once.

        A run falls back often and its ledger is long, so this keeps a byte per slot in memory and no more.
        """
        places = {step: place for step, place in self._place_of_step().items() if step <= frontier.version}
        left = bytearray(b"\1" * frontier.lowest_untrained)
        if frontier.trained_above:
            left.extend(bytes(max(frontier.trained_above) + 1 - len(left)))
        for slot in frontier.trained_above:
            left[slot] = 1
        sizes = frontier.batch_sizes()
        for place, row in enumerate(self._each_row()):
            if places.get(row.get("step", -1)) == place:
                slots, size = slots_of(row["uids"]), sizes[row["step"] - 1]
                if len(slots) != size or max(slots) >= len(left) or not all(left[slot] for slot in slots):
                    return False
                for slot in slots:
                    left[slot] = 0
        return len(places) == frontier.version and not any(left)

    def _place_of_step(self) -> dict[int, int]:
        """Where among all rows the valid one of each step is."""
        places: dict[int, int] = {}
        for place, row in enumerate(self._each_row()):
            if "rollback_to" in row:
                places = {step: kept for step, kept in places.items() if step <= row["rollback_to"]}
            else:
                places[row["step"]] = place
        return places

    def _each_row(self) -> Iterator[Row]:
        """All rows one by one, also those that are not on disk yet."""
        for line in each_complete_line(self.path):
            row = parse_row(line)
            if row is not None and is_ledger_row(row):
                yield row
        yield from self.rows.kept

    def _valid_rows(self) -> list[Row]:
        """The rows that count, in the order of the file."""
        return _valid([*self._each_row()])


def valid_ledger(path: Path) -> dict[int, list[str]]:
    """The uids trained in each step, ascending, after voiding what was rolled back."""
    return dict(sorted(Ledger(path).valid().items()))


def is_ledger_row(row: Row | None) -> bool:
    """True if it is a row of the ledger."""
    if row is None:
        return False
    if "rollback_to" in row:
        return has(row, rollback_to=int)
    return has(row, step=int, uids=list) and row["step"] > 0


def slots_of(uids: Sequence[str]) -> set[int]:
    """The slots of some uids: the first part of each, where that is a number."""
    return {int(slot) for uid in uids if (slot := str(uid).partition("-")[0]).isdecimal() and len(slot) < 19}


def _valid(rows: Sequence[Row]) -> list[Row]:
    valid: dict[int, Row] = {}
    for row in rows:
        if "rollback_to" in row:
            valid = {step: kept for step, kept in valid.items() if step <= row["rollback_to"]}
        else:
            valid.pop(row["step"], None)
            valid[row["step"]] = row
    return list(valid.values())
