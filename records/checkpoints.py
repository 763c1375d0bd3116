"""Checkpoint folders: `step_N` exists if and only if it is complete, wherever a process dies.

    step_N.tmp       is being written
    step_N           is committed: all is on disk, and `committed.json` has size and checksum of every file
    step_N.old       is being replaced by a newer one of the same step
    step_N.damaged   was found damaged when a run fell back to an older one
    step_N.universal is made of step_N for another number of ranks (`learner/universal.py`)

Nothing here imports torch: driver and ranks use the same functions.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "committed.json"

_STEP_FOLDER = re.compile(r"step_(\d+)")
_BLOCK_BYTES = 2**24
_READERS = 4


class DamagedCheckpointError(Exception):
    """A committed checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class FileRecord:
    """What a file must hold."""

    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class WriteReport:
    """What a rank has written of a checkpoint, by name relative to its folder."""

    files: dict[str, FileRecord]
    seconds: float
    failure: str | None = None
    """Why nothing more was written, if the disk did not take everything."""


@dataclass(frozen=True)
class CheckpointManifest:
    """What a complete checkpoint holds: all files, the ranks that wrote them, the driver's state (JSON)."""

    world_size: int
    zero_stage: int
    dtype: str
    files: dict[str, FileRecord]
    client_state: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(record.num_bytes for record in self.files.values())


def remove_tree(path: Path) -> None:
    """Remove a folder; of a link the link alone, since what it leads to is not ours."""
    path.unlink() if path.is_symlink() else shutil.rmtree(path)


def step_path(checkpoints_path: Path | str, step: int) -> Path:
    """Return the folder of the checkpoint taken after `step` updates."""
    return Path(checkpoints_path) / f"step_{step}"


def temporary_path(path: Path | str) -> Path:
    """Return the folder that is filled before it becomes `path`."""
    return Path(f"{path}.tmp")


def universal_path(path: Path | str) -> Path:
    """Return the folder of what the checkpoint `path` was converted to."""
    return Path(f"{path}.universal")


def committed_steps(checkpoints_path: Path | str) -> list[int]:
    """Return the steps of complete checkpoints, oldest first."""
    root = Path(checkpoints_path)
    if not root.is_dir():
        return []
    matches = [_STEP_FOLDER.fullmatch(path.name) for path in root.iterdir() if (path / MANIFEST_NAME).is_file()]
    return sorted(int(match[1]) for match in matches if match)


# -- writing ------------------------------------------------------------------------------------------------


def start(path: Path | str) -> Path:
    """Make and return an empty temporary folder for `path`, dropping what an interrupted attempt left."""
    temporary = temporary_path(path)
    discard(path)
    temporary.mkdir(parents=True)
    return temporary


def discard(path: Path | str) -> None:
    """Remove the temporary folder of `path`, if there is one."""
    temporary = temporary_path(path)
    if temporary.is_symlink() or temporary.exists():
        remove_tree(temporary)


def commit(path: Path | str, manifest: CheckpointManifest, *, check: Callable[[], object] = lambda: None) -> None:
    """Complete the temporary folder of `path` with its manifest and rename it, replacing an older one.

    Whoever wrote the manifest's files has put them on disk; files that it does not name are removed. `check` is
    called before anything is put in place or removed, here and below, and may refuse with an error of its own.
    """
    path, temporary = Path(path), temporary_path(path)
    check()
    for name in sorted(_file_names(temporary) - manifest.files.keys()):
        (temporary / name).unlink()
    _write_durably(temporary / MANIFEST_NAME, manifest_text(manifest))
    for folder in (temporary, *(entry for entry in temporary.rglob("*") if entry.is_dir())):
        fsync(folder)
    check()
    if path.exists():  # the same step again, after a fall-back
        replaced = Path(f"{path}.old")
        os.replace(path, replaced)
        os.replace(temporary, path)
        fsync(path.parent)
        check()
        remove_tree(replaced)
    else:
        os.replace(temporary, path)
    fsync(path.parent)


def recover(checkpoints_path: Path | str, *, check: Callable[[], object] = lambda: None) -> None:
    """Tidy up what a killed process left: a replaced checkpoint without its successor is restored.

    Not while a checkpoint is being written.
    """
    root = Path(checkpoints_path)
    for replaced in sorted(root.glob("step_*.old")):
        path = replaced.with_suffix("")
        check()
        if not (path / MANIFEST_NAME).is_file() and (replaced / MANIFEST_NAME).is_file():
            if path.exists():
                remove_tree(path)
            os.replace(replaced, path)
        else:
            remove_tree(replaced)
    for leftover in sorted(root.glob("step_*.tmp")):
        check()
        remove_tree(leftover)
    for folder in sorted(root.glob("step_*")):  # half removed
        if _STEP_FOLDER.fullmatch(folder.name) and not (folder / MANIFEST_NAME).is_file():
            check()
            remove_tree(folder)


def remove_old(
    checkpoints_path: Path | str, *, keep: int, check: Callable[[], object] = lambda: None
) -> list[Path]:
    """Remove all but the `keep` newest complete checkpoints, and what belongs to them; return them.

    A folder loses its manifest first, so that one half removed does not count as complete.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be >= 1, got {keep}")
    steps = committed_steps(checkpoints_path)
    old = [step_path(checkpoints_path, step) for step in steps[:-keep]]
    removed = [path for path in old if not path.is_symlink()]
    for path in removed:
        check()
        remove(path)
    for folder in Path(checkpoints_path).glob("step_*.*"):
        is_done_with = folder.suffix == ".universal" and not folder.with_suffix("").exists()
        if folder.suffix == ".damaged" and steps:
            is_done_with = int(folder.stem.removeprefix("step_")) <= steps[-1]
        if is_done_with:
            check()
            remove_tree(folder)
    return removed


def remove(path: Path) -> None:
    """Remove a complete checkpoint, its manifest first."""
    (path / MANIFEST_NAME).unlink()
    fsync(path)
    remove_tree(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not taken for one any more; returns its new path."""
    aside = Path(f"{path}.damaged")
    if aside.exists():
        remove_tree(aside)
    os.replace(path, aside)
    fsync(path.parent)
    return aside


# -- reading ------------------------------------------------------------------------------------------------


def read_manifest(path: Path | str) -> CheckpointManifest:
    """Return the manifest of a complete checkpoint; DamagedCheckpointError without a readable one."""
    file = Path(path) / MANIFEST_NAME
    try:
        return parse_manifest(file.read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"it is not complete: it has no {MANIFEST_NAME}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpointError(f"{MANIFEST_NAME} cannot be read: {error}") from error


def verify(path: Path | str) -> CheckpointManifest:
    """Return the manifest after reading every file; DamagedCheckpointError naming what differs from it."""
    manifest = read_manifest(path)
    check_sizes(path, manifest)
    names = sorted(manifest.files)
    with ThreadPoolExecutor(_READERS) as readers:  # neither reading nor checksums hold Python's lock
        for name, found in zip(names, readers.map(lambda name: _record(Path(path) / name), names), strict=True):
            if found != manifest.files[name]:
                raise DamagedCheckpointError(f"file {name} is damaged: its checksum differs")
    return manifest


def check_sizes(path: Path | str, manifest: CheckpointManifest) -> None:
    """Raise DamagedCheckpointError naming a file that is missing or of another size."""
    for name, record in manifest.files.items():
        file = Path(path) / name
        found = file.stat().st_size if file.is_file() else None
        if found != record.num_bytes:
            raise DamagedCheckpointError(f"file {name} should hold {record.num_bytes} bytes, has {found}")


def manifest_text(manifest: CheckpointManifest) -> str:
    """As it is stored: JSON, with a checksum of its own."""
    content = asdict(manifest)
    return json.dumps(content | {"crc32": _checksum_of(content)}, indent=1)


def parse_manifest(text: bytes) -> CheckpointManifest:
    """The stored manifest; ValueError, TypeError or KeyError if it is not one."""
    content = json.loads(text)
    if content.pop("crc32") != _checksum_of(content):
        raise ValueError("its checksum differs")
    files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
    return CheckpointManifest(files=files, **content)


def _checksum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def record_of(blocks: Iterable[bytes]) -> FileRecord:
    """Size and checksum of a file given in blocks."""
    num_bytes = crc32 = 0
    for block in blocks:
        num_bytes += len(block)
        crc32 = zlib.crc32(block, crc32)
    return FileRecord(num_bytes, crc32)


def _record(file: Path) -> FileRecord:
    try:
        with file.open("rb") as opened:
            return record_of(iter(lambda: opened.read(_BLOCK_BYTES), b""))
    except OSError as error:
        raise DamagedCheckpointError(f"file {file.name} cannot be read: {error}") from error


def _file_names(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file()} - {MANIFEST_NAME}


def _write_durably(file: Path, text: str) -> None:
    file.write_text(text)
    fsync(file)


def fsync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Frontier:
    """Which slots are trained: what a checkpoint stores."""

    version: int = 0
    """Batches trained or skipped so far: the learner's weight version."""
    lowest_untrained: int = 0
    """Every slot below this one is trained."""
    trained_above: tuple[int, ...] = ()
    """The trained slots above it."""
    cuts: tuple[tuple[int, int], ...] = ()
    """(version, batch size) from where on batches have that size; empty if all had the same."""

    def batch_sizes(self) -> list[int]:
        """The number of slots of every batch so far; ValueError unless those are the trained ones."""
        above = self.trained_above
        for name in ("version", "lowest_untrained"):
            if getattr(self, name) < 0:
                raise ValueError(f"frontier.{name} must be >= 0, got {getattr(self, name)}")
        if len(set(above)) < len(above) or not all(slot > self.lowest_untrained for slot in above):
            raise ValueError(
                f"frontier.trained_above must be slots above {self.lowest_untrained}, each once, got {above}"
            )
        num_trained = self.lowest_untrained + len(above)
        cuts = self.cuts or ((0, num_trained // max(1, self.version)),)
        ends = [*(version for version, _ in cuts[1:]), self.version]
        sizes = [size for (version, size), end in zip(cuts, ends, strict=True) for _ in range(version, end)]
        if len(sizes) != self.version or sum(sizes) != num_trained or not all(size > 0 for size in sizes):
            raise ValueError(f"frontier: {num_trained} trained slots are not {self.version} batches")
        return sizes


BEGINNING = Frontier()
