"""Files on disk: rows of JSON that are appended whole and read back without damaged lines, and files that are
replaced whole; what a full disk answers is told apart from mistakes.
"""

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row and hand it to the operating system."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return all readable rows. A last line cut off by a crash is left out, damaged ones are too, with a warning.

    Empty without the file.
    """
    rows = []
    for number, line in enumerate(complete_lines(path), start=1):
        row = parse_row(line)
        if row is not None:
            rows.append(row)
        elif line:
            logger.warning("%s: line %d is damaged and is left out", path, number)
    return rows


def complete_lines(path: Path) -> list[bytes]:
    """The lines that end with a line break, without it; none without the file."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def each_complete_line(path: Path) -> Iterator[bytes]:
    """The same lines one by one: for files that may be large."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (line[:-1] for line in file if line.endswith(b"\n"))


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if it is damaged or empty."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class RowFile:
    """Appends rows to a file, and keeps them in memory while the disk does not take them.

    `on_late(path, num_rows, num_dropped)` is called once the kept rows are on disk.
    """

    def __init__(
        self, path: Path, *, max_kept: int | None = None, check: Callable[[], object] = lambda: None
    ) -> None:
        """Beyond `max_kept` rows in memory the oldest are dropped; by default none is.

        `check` may refuse to write with an error of its own, once the file is open.
        """
        self.path = path
        self._check = check
        self.on_late: Callable[[Path, int, int], object] = lambda path, num_rows, num_dropped: None
        self._max_kept = max_kept
        self._kept: list[bytes] = []
        self._is_late = False
        self._num_dropped = 0
        self._lock = threading.RLock()  # a checkpoint flushes from a thread of its own

    @property
    def kept(self) -> Iterator[dict[str, Any]]:
        """The rows that are not in the file yet."""
        return (json.loads(line) for line in self._kept)

    def append(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the operating system, or keep it for the next time."""
        line = json.dumps(row).encode() + b"\n"
        with self._lock:
            self._kept.append(line)
            try:
                self._write_kept()
            except OSError as error:
                if not is_disk_error(error):
                    raise
                self._note_late(error)

    def flush(self) -> None:
        """Put every row on disk; OSError if it does not take them all."""
        with self._lock:
            self._write_kept()
        if self.path.is_file():
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def _write_kept(self) -> None:
        if not self._kept:
            return
        with self.path.open("ab", buffering=0) as file:
            self._check()
            start = file.tell()
            try:
                left = memoryview(b"".join(self._kept))
                while len(left):
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(start)  # no half line stays
                raise
        num_rows, self._kept = len(self._kept), []
        if self._is_late:
            num_dropped, self._is_late, self._num_dropped = self._num_dropped, False, 0
            logger.warning("%s: %d rows were written late, %d were dropped", self.path, num_rows, num_dropped)
            self.on_late(self.path, num_rows, num_dropped)

    def _note_late(self, error: OSError) -> None:
        if not self._is_late:
            logger.warning("%s: %s; rows are kept in memory until there is space", self.path, error.strerror)
        self._is_late = True
        if self._max_kept is not None and len(self._kept) > self._max_kept:
            self._num_dropped += len(self._kept) - self._max_kept
            del self._kept[: -self._max_kept]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block has ended well."""
    temporary = path.with_suffix(".tmp")
    yield temporary
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON in the place of `path`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
"""No space, over quota, failing, and beyond the limit of a file's size: all may pass."""


def is_disk_error(error: BaseException) -> bool:
    """True if it says that the disk did not take what was written."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def free_bytes(path: Path) -> int:
    """Free space where `path` lies, or would lie."""
    return space(path)["free"]


def space(path: Path) -> dict[str, int]:
    """Free bytes and all bytes (`free`, `size`) of the disk where `path` lies, or would lie."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return {"free": usage.free, "size": usage.total}
