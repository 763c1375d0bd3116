"""What a full or failing disk answers, told apart from mistakes."""

import errno
import shutil
from pathlib import Path

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
