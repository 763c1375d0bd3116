"""What one node has: memory, devices, and which files it can reach. Runs on every node, or here."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SMI_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class NodeFacts:
    """A node as a task found it."""

    memory_bytes: int
    """All of its memory."""
    available_bytes: int
    """What is free or can be freed now."""
    gpu_bytes: tuple[int, ...]
    """Memory of each GPU; empty without any, or without `nvidia-smi`."""
    missing: tuple[str, ...]
    """Those of the given paths that it does not have."""
    is_writable: bool
    """Whether run folders can be written there."""


def describe_node(paths: Sequence[str], runs_path: str) -> NodeFacts:
    """What this machine has; `paths` are files or folders that it must have."""
    memory = psutil.virtual_memory()
    missing = tuple(path for path in paths if not Path(path).exists())
    is_writable = Path(runs_path).is_dir() and os.access(runs_path, os.W_OK | os.X_OK)
    return NodeFacts(memory.total, memory.available, _gpu_bytes(), missing, is_writable)


def needed_paths(paths: Sequence[str]) -> list[str]:
    """Those of the paths that are files or folders here; the others are names on the hub."""
    return [path for path in dict.fromkeys(paths) if Path(path).exists()]


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _gpu_bytes() -> tuple[int, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    values = [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return tuple(int(value) * 2**20 for value in values if value.isdecimal())
