"""A file in shared memory used by several processes of one machine, created by the first and removed by the last.

Every user holds a shared lock on the file, which the kernel releases however the process ends. A file that nobody
has locked is therefore stale, and any process may remove it. The writer holds an exclusive lock on `NAME.part` and
renames it when it is complete: others see the whole file or none.
"""

import fcntl
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFIX = f"poweropd-weights-{os.getuid()}-"
WAIT_S = 300.0
"""Maximum time to wait for another process to write a file, before writing its own."""
POLL_S = 0.01


@dataclass
class SharedFile:
    """A complete file that stays as long as this process holds it."""

    path: Path
    was_written_here: bool
    _handle: int | None
    """None once it is no longer held."""

    def read(self) -> np.ndarray:
        """Map the file: read-only uint8."""
        assert self._handle is not None, f"{self.path} is no longer held"
        return np.frombuffer(mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ), np.uint8)

    def release(self) -> None:
        """Release it; the last user on the machine removes it."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if _locked(handle, fcntl.LOCK_EX) and _is_at(self.path, handle):
                self.path.unlink()
        finally:
            os.close(handle)

    def give_to(self, part: Path) -> int | None:
        """Rename this file to `part`, to be overwritten; returns its handle, or None if others use it too."""
        handle = self._handle
        if handle is None or part.parent != self.path.parent:
            return None
        if not _locked(handle, fcntl.LOCK_EX) or not _is_at(self.path, handle):
            fcntl.flock(handle, fcntl.LOCK_SH)  # the attempt may have cost us the lock we had
            return None
        self.path.rename(part)
        self._handle = None
        return handle


def hold(
    name: str,
    write: Callable[[BinaryIO], None],
    *,
    num_bytes: int,
    wait_s: float | None = None,
    prepare: Callable[[], SharedFile | None] | None = None,
) -> SharedFile:
    """Return the machine's file of this name, written by `write` if there is none; what `write` raises is raised.

    If another process is writing it, wait for up to `WAIT_S`. If shared memory is too small (containers often have
    64 MB), use the temporary folder.

    `prepare` is called before `write` and may return a file that this process no longer needs. If no other process
    needs it either, it is overwritten, which takes half the time of new memory; otherwise it is released.
    """
    path = _folder(num_bytes) / f"{PREFIX}{name}"
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    while True:
        for found in {path, *(folder / path.name for folder in _folders())}:
            handle = _open_locked(found, fcntl.LOCK_SH)
            if handle is not None:
                return SharedFile(found, False, handle)
        part = path.with_name(f"{path.name}.part")
        handle = _open_locked(part, fcntl.LOCK_EX, flags=os.O_CREAT)
        if handle is not None and not path.exists():
            return _written(path, part, handle, write, prepare)
        if handle is not None:  # it was completed since we looked
            part.unlink()
            os.close(handle)
        elif time.monotonic() > deadline:
            path, deadline = path.with_name(f"{path.name}-{os.getpid()}"), float("inf")
            logger.warning("another process takes too long to write %s; writing one of our own", part)
        time.sleep(POLL_S)


def remove_left_over() -> list[Path]:
    """Remove this user's files that no live process holds; returns their paths."""
    removed = []
    for path in [path for folder in _folders() for path in folder.glob(f"{PREFIX}*")]:
        handle = _open_locked(path, fcntl.LOCK_EX)
        if handle is not None:
            path.unlink()
            os.close(handle)
            removed.append(path)
    return removed


def _written(
    path: Path,
    part: Path,
    handle: int,
    write: Callable[[BinaryIO], None],
    prepare: Callable[[], SharedFile | None] | None,
) -> SharedFile:
    try:
        old = None if prepare is None else prepare()
        if old is not None:
            handle = _instead(handle, part, old)
        with os.fdopen(os.dup(handle), "wb") as file:
            file.seek(0)
            write(file)
            file.truncate()
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        os.close(handle)
        raise
    fcntl.flock(handle, fcntl.LOCK_SH)
    return SharedFile(path, True, handle)


def _instead(handle: int, part: Path, old: SharedFile) -> int:
    """The handle of the file to write: of `old` if it can be had; the other one is closed."""
    given = old.give_to(part)
    if given is None:
        old.release()
        return handle
    os.close(handle)
    return given


def _open_locked(path: Path, mode: int, *, flags: int = 0) -> int | None:
    """Open and lock a file; None if it is not there, or locked by another, or no longer under this path."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except FileNotFoundError:
        return None
    if _locked(handle, mode) and _is_at(path, handle):
        return handle
    os.close(handle)
    return None


def _locked(handle: int, mode: int) -> bool:
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _folders() -> list[Path]:
    return [folder for folder in (SHARED_MEMORY, Path(tempfile.gettempdir())) if folder.is_dir()]


def _folder(num_bytes: int) -> Path:
    fits = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * num_bytes
    return SHARED_MEMORY if fits else Path(tempfile.gettempdir())
