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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


MAX_NAMED = 5
"""Damaged lines that a warning names."""

NUMBER = (int, float)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row and hand it to the operating system."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path, is_one: Callable[[dict[str, Any]], bool] = lambda row: True) -> list[dict[str, Any]]:
    """Return all readable rows that are of the file's kind (`is_one`). A last line cut off by a crash is left out;
    damaged rows and others are too, with one warning that counts them.

    Empty without the file.
    """
    rows, damaged = [], []
    for number, line in enumerate(each_complete_line(path), start=1):
        row = parse_row(line)
        if row is not None and is_one(row):
            rows.append(row)
        elif line:
            damaged.append(number)
    if damaged:
        named = ", ".join(map(str, damaged[:MAX_NAMED])) + (", ..." if len(damaged) > MAX_NAMED else "")
        logger.warning("%s: %d damaged rows are left out (line %s)", path, len(damaged), named)
    return rows


def has(row: Mapping[str, Any], **kinds: type | tuple[type, ...]) -> bool:
    """Whether a row has values of these kinds under these keys; counts are 0 or more, and no truth values."""
    for key, kind in kinds.items():
        value = row.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        if kind is int and isinstance(value, int) and not 0 <= value < 2**63:
            return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The object of a file of JSON; None without the file. ValueError naming it if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return content


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
    except (RecursionError, ValueError):
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
        with self._lock, naming(self.path):
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
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk names the file: what `write` and `fsync` raise does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON in the place of `path`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


DISK_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
        *(errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES),
    }
)
"""No space, over quota, failing, beyond the limit of a file's size; and what a network file system answers while
its server is away. All may pass."""


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
