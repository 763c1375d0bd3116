"""What happened in a run, with time and reason: `events.jsonl`, and a log line for each."""

import logging
import time
from pathlib import Path
from typing import Any

from cluster.jsonl import append_row
from cluster.ownership import Ownership

logger = logging.getLogger(__name__)


class Events:
    """Appends events to a file; without one they are only logged."""

    def __init__(self, path: Path | None = None, owner: Ownership | None = None) -> None:
        """`owner`: only while it holds the file's folder are events written there."""
        self._path = path
        self._owner = owner

    def add(self, event: str, **details: Any) -> None:
        """Record one event, e.g. `add("worker_died", worker="teacher-0", reason="...")`."""
        row = {"time": round(time.time(), 3), "event": event, **details}
        logger.info("%s %s", event, " ".join(f"{key}={value}" for key, value in details.items()))
        if self._path is not None and (self._owner is None or self._owner.is_held):
            append_row(self._path, row)


def reason_of(error: BaseException) -> str:
    """An error in one line: its kind, and the last line of its message (of a Ray error, the cause)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
