"""Checkpoint folders: `step_N` exists if and only if it is complete, wherever a process dies.

Ranks write into `step_N.tmp`; once everything is on disk the first rank writes the manifest `committed.json` and
renames the folder. Nothing here imports torch: the driver finds and removes checkpoints with the same
functions.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "committed.json"

_STEP_FOLDER = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class CheckpointManifest:
    """What a complete checkpoint holds: sizes of all files, the ranks that wrote it, the driver's state."""

    world_size: int
    zero_stage: int
    dtype: str
    file_bytes: dict[str, int]
    client_state: dict[str, Any]


def step_path(checkpoints_path: Path | str, step: int) -> Path:
    """Return the folder of the checkpoint taken after `step` updates."""
    return Path(checkpoints_path) / f"step_{step}"


def committed_steps(checkpoints_path: Path | str) -> list[int]:
    """Return the steps of complete checkpoints, oldest first."""
    root = Path(checkpoints_path)
    if not root.is_dir():
        return []
    matches = [_STEP_FOLDER.fullmatch(path.name) for path in root.iterdir() if (path / MANIFEST_NAME).is_file()]
    return sorted(int(match[1]) for match in matches if match)


def newest_checkpoint(checkpoints_path: Path | str) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none."""
    steps = committed_steps(checkpoints_path)
    return step_path(checkpoints_path, steps[-1]) if steps else None


def remove_old(checkpoints_path: Path | str, *, keep: int) -> list[Path]:
    """Remove all but the `keep` newest complete checkpoints; return what was removed.

    A folder loses its manifest first, so that one half removed does not count as complete.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be >= 1, got {keep}")
    old = [step_path(checkpoints_path, step) for step in committed_steps(checkpoints_path)[:-keep]]
    removed = [path for path in old if not path.is_symlink()]  # what a link leads to is not ours to remove
    for path in removed:
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)
    return removed


def temporary_path(path: Path | str) -> Path:
    """Return the folder that is filled before it becomes `path`."""
    return Path(f"{path}.tmp")


def start(path: Path | str) -> None:
    """Make an empty temporary folder for `path`, dropping what an interrupted attempt left."""
    temporary = temporary_path(path)
    if temporary.is_symlink():
        temporary.unlink()
    elif temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)


def flush(path: Path | str) -> None:
    """Put every file of the temporary folder on disk, as seen from this node."""
    for file in (entry for entry in temporary_path(path).rglob("*") if entry.is_file()):
        _fsync(file)


def commit(path: Path | str, manifest: CheckpointManifest) -> None:
    """Complete the temporary folder of `path` with its manifest and rename it, replacing an older one."""
    path, temporary = Path(path), temporary_path(path)
    _write_durably(temporary / MANIFEST_NAME, json.dumps(asdict(manifest), indent=1))
    _fsync(temporary)
    if path.exists():  # the same step again, after a fall-back
        replaced = Path(f"{path}.old")
        os.replace(path, replaced)
        os.replace(temporary, path)
        replaced.unlink() if replaced.is_symlink() else shutil.rmtree(replaced)
    else:
        os.replace(temporary, path)
    _fsync(path.parent)


def file_sizes(path: Path | str) -> dict[str, int]:
    """Return the size of every file below `path` (without the manifest), by relative name."""
    root = Path(path)
    files = sorted(entry for entry in root.rglob("*") if entry.is_file())
    return {str(file.relative_to(root)): file.stat().st_size for file in files if file.name != MANIFEST_NAME}


def read_manifest(path: Path | str) -> CheckpointManifest:
    """Return the manifest of a complete checkpoint; ValueError if files are missing or cut short."""
    file = Path(path) / MANIFEST_NAME
    if not file.is_file():
        raise ValueError(f"checkpoint {path} is not complete: it has no {MANIFEST_NAME}")
    manifest = CheckpointManifest(**json.loads(file.read_text()))
    found = file_sizes(path)
    for name, size in manifest.file_bytes.items():
        if found.get(name) != size:
            raise ValueError(f"checkpoint {path}: file {name} should hold {size} bytes, has {found.get(name)}")
    return manifest


def check_world(manifest: CheckpointManifest, *, world_size: int, zero_stage: int, path: Path | str) -> None:
    """Raise ValueError unless the checkpoint was written by as many ranks with the same ZeRO stage."""
    if manifest.world_size != world_size:
        raise ValueError(
            f"checkpoint {path} was written by {manifest.world_size} learner ranks and cannot be read by "
            f"{world_size}: set learner.num_workers to {manifest.world_size}"
        )
    if manifest.zero_stage != zero_stage:
        raise ValueError(
            f"checkpoint {path} was written with learner.zero_stage {manifest.zero_stage}, not {zero_stage}"
        )


def _write_durably(file: Path, text: str) -> None:
    file.write_text(text)
    _fsync(file)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
