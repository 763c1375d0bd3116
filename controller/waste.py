"""Response tokens that were generated and then not trained on, by cause, from the beginning of the run.

wasted/lost       the rollout was lost with its worker or its table, and generated again
wasted/refused    no teacher could score it, and it was generated again
wasted/given_up   its prompt was given up
wasted/skipped    its step had no finite gradient
wasted/fall_back  the learner was lost or the run continued: steps after the checkpoint, rollouts not trained yet
wasted/cut_off    attempts (not tokens) that ended before the response did: how long it was is not known

Tokens that masks leave out of a step are in `masked/...`. Counts go on when a run is continued; what was generated
after the last step before a crash is not known and not among them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Cause = Literal["lost", "refused", "given_up", "skipped", "fall_back", "cut_off"]
CAUSES: tuple[Cause, ...] = ("lost", "refused", "given_up", "skipped", "fall_back", "cut_off")


class Waste:
    """Follows finished rollouts to their training, or to what becomes of them instead."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """`rows`: the metrics rows of a run that is continued, all of them, as they were written."""
        self._wasted: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self._finished: dict[int, int] = {}  # response tokens by slot, not trained yet
        self._trained: dict[int, int] = {}  # tokens by step, of steps that count
        for row in rows:
            self._void(row["step"] - 1)
            self._trained[row["step"]] = int(row.get("tokens_trained", 0))
            self._wasted = {cause: row.get(f"wasted/{cause}", self._wasted[cause]) for cause in CAUSES}

    def begin(self, version: int) -> None:
        """A course of the run begins at `version`: later steps, and rollouts that were not trained, are wasted."""
        self._wasted["fall_back"] += self._void(version) + sum(self._finished.values())
        self._finished.clear()

    def finish(self, slot: int, num_tokens: int) -> None:
        """Note that a slot has been generated."""
        self._finished[slot] = num_tokens

    def lose(self, slot: int, cause: Cause) -> None:
        """Note that a slot is generated again; or, if it had not been generated, that the attempt was cut off."""
        num_tokens = self._finished.pop(slot, None)
        if num_tokens is None:
            self._wasted["cut_off"] += 1
        else:
            self._wasted[cause] += num_tokens

    def train(self, row: Mapping[str, Any], slots: Iterable[int]) -> dict[str, int]:
        """Note a step: its metrics row and its slots. Returns what the row says of waste."""
        for slot in slots:
            self._finished.pop(slot, None)
        num_tokens = int(row.get("tokens_trained", 0))
        if row.get("skipped"):
            self._wasted["skipped"] += num_tokens
            num_tokens = 0
        self._trained[row["step"]] = num_tokens
        return {f"wasted/{cause}": count for cause, count in self._wasted.items()}

    def _void(self, version: int) -> int:
        """Forget the steps above a version; returns their tokens."""
        return sum(self._trained.pop(step) for step in [*self._trained] if step > version)
