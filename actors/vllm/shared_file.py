"""A file in shared memory that several processes of one machine use, made by the first and removed with the last.

Whoever uses the file holds a shared lock on it, which the kernel lets go when the process ends, however it ends.
A file that nobody has locked is therefore left over, and anybody may remove it. The writer holds an exclusive lock
on `NAME.part` and renames it when it is complete: others see the whole file or none.
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
"""So long a process waits for another one to write a file; then it writes one of its own."""
POLL_S = 0.01


@dataclass(frozen=True)
class SharedFile:
    """A complete file that stays as long as this process holds it."""

    path: Path
    was_written_here: bool
    _handle: int

    def read(self) -> np.ndarray:
        """Map the file: read-only uint8."""
        return np.frombuffer(mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ), np.uint8)

    def release(self) -> None:
        """Use it no more; the last user of the machine removes it."""
        try:
            if _locked(self._handle, fcntl.LOCK_EX) and _is_at(self.path, self._handle):
                self.path.unlink()
        finally:
            os.close(self._handle)


def hold(
    name: str, write: Callable[[BinaryIO], None], *, num_bytes: int, wait_s: float | None = None
) -> SharedFile:
    """Return the machine's file of this name, written by `write` if there is none; what `write` raises is raised.

    Another process that is writing it is waited for, for `WAIT_S`. Where shared memory has no room (containers
    often have 64 MB) the temporary folder serves.
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
            return _written(path, part, handle, write)
        if handle is not None:  # it was completed since we looked
            part.unlink()
            os.close(handle)
        elif time.monotonic() > deadline:
            path, deadline = path.with_name(f"{path.name}-{os.getpid()}"), float("inf")
            logger.warning("another process takes too long to write %s; writing one of our own", part)
        time.sleep(POLL_S)


def remove_left_over() -> list[Path]:
    """Remove this user's files that no living process holds; returns them."""
    removed = []
    for path in [path for folder in _folders() for path in folder.glob(f"{PREFIX}*")]:
        handle = _open_locked(path, fcntl.LOCK_EX)
        if handle is not None:
            path.unlink()
            os.close(handle)
            removed.append(path)
    return removed


def _written(path: Path, part: Path, handle: int, write: Callable[[BinaryIO], None]) -> SharedFile:
    try:
        os.ftruncate(handle, 0)
        with os.fdopen(os.dup(handle), "wb") as file:
            write(file)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        os.close(handle)
        raise
    fcntl.flock(handle, fcntl.LOCK_SH)
    return SharedFile(path, True, handle)


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
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * num_bytes
    return SHARED_MEMORY if has_room else Path(tempfile.gettempdir())
