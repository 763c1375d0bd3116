"""What happened in a run, with time and reason: `events.jsonl`, and a log line for each.

`record_data` notes what the run trains on, and says when a resumed run meets other data than before.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from records.files import RowFile, read_json
from records.ownership import NotOwnerError, Ownership
from records.run_folder import RunFolder

logger = logging.getLogger(__name__)

MAX_KEPT_EVENTS = 10_000
"""Events kept in memory while the disk is full."""


class Events:
    """Appends events to a file; without one they are only logged."""

    def __init__(self, path: Path | None = None, owner: Ownership | None = None) -> None:
        """`owner`: only while it holds the file's folder are events written there."""
        self._owner = owner
        self._show: list[Callable[[dict[str, Any]], object]] = []
        self._rows = None if path is None else RowFile(path, max_kept=MAX_KEPT_EVENTS, check=self._check)
        if self._rows is not None:
            self._rows.on_late = self.add_late

    def on_event(self, show: Callable[[dict[str, Any]], object]) -> None:
        """Call `show(event)` with every event."""
        self._show.append(show)

    def add(self, event: str, **details: Any) -> None:
        """Record one event, e.g. `add("worker_died", worker="teacher-0", reason="...")`.

        While the disk is full it is kept in memory.
        """
        row = {"time": round(time.time(), 3), "event": event, **details}
        logger.info("%s %s", event, " ".join(f"{key}={value}" for key, value in details.items()))
        if self._rows is not None:
            with suppress(NotOwnerError):
                self._rows.append(row)
        for show in self._show:
            show(row)

    def _check(self) -> None:
        if self._owner is not None:
            self._owner.check()

    def add_late(self, file: Path, num_rows: int, num_dropped: int) -> None:
        """Record that a disk which was full has taken the rows of a file after all."""
        self.add(
            "rows_written_late", file=file.name, rows=num_rows, dropped=num_dropped, reason="the disk was full"
        )


def reason_of(error: BaseException) -> str:
    """An error in one line: its kind, and the last line of its message (of a Ray error, the cause)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def record_data(folder: RunFolder, events: Events, report: dict[str, Any]) -> None:
    """Write the report of the training data, and note it as an event.

    Of data that changed while the run was interrupted, the slots that are left have other prompts: that is noted
    and logged, and no error, since it may be meant.
    """
    before = _read(folder)
    folder.write_data_report(report)
    kept = {source["setting"]: source["kept"] for source in report["sources"]}
    dropped = {source["setting"]: source["dropped"] for source in report["sources"]}
    events.add("data", fingerprint=report["fingerprint"], kept=kept, dropped=dropped)
    known = ["fingerprint", *(["seed"] if before is not None and "seed" in before else [])]  # of older runs
    if before is not None and any(before.get(name) != report.get(name) for name in known):
        logger.warning(
            "the training data or their order (seed) are not those that the run began with (%s has the report of "
            "these): from here on slots have other prompts",
            folder.data_report,
        )
        events.add("data_changed", reason="other prompts than before the run was resumed")


def _read(folder: RunFolder) -> dict[str, Any] | None:
    try:
        return read_json(folder.data_report)
    except ValueError as error:  # it tells nothing, and is written anew
        logger.warning("the data of the run before are not known: %s", error)
        return None
