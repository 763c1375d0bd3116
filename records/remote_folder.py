"""Checkpoints in remote storage (any fsspec URL): uploaded with the manifest last, removed with it first."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from records.checkpoints import (
    MANIFEST_NAME,
    CheckpointManifest,
    DamagedCheckpointError,
    manifest_text,
    parse_manifest,
    read_manifest,
)

_STEP_FOLDER = re.compile(r"step_(\d+)")
ASIDE_NAME = "damaged.json"
"""What the manifest of a damaged checkpoint is called, so that it is not taken for one any more."""


class RemoteFolder:
    """Checkpoints `URL/step_N`. Its calls block, and raise OSError for whatever the storage answers."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(self.url)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Every storage client raises kinds of its own; here they are all an input/output error."""
        try:
            yield
        except (OSError, DamagedCheckpointError):
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{self.url}: {type(error).__name__}: {error}") from error

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first; as the storage is now."""
        with self._storage():
            return self._steps()

    def _steps(self) -> list[int]:
        return [step for step in self._all_steps() if self._files.exists(self._place(step, MANIFEST_NAME))]

    def _all_steps(self) -> list[int]:
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        return sorted(int(match[1]) for name in names if (match := _STEP_FOLDER.fullmatch(name)))

    def place(self, step: int) -> str:
        """The URL of a checkpoint."""
        return f"{self.url}/step_{step}"

    def upload(self, path: Path, step: int) -> None:
        """Copy a complete checkpoint there, in place of an older one of the step."""
        manifest = read_manifest(path)
        with self._storage():
            self._upload(path, step, manifest)

    def _upload(self, path: Path, step: int, manifest: CheckpointManifest) -> None:
        self.remove(step)
        for name in manifest.files:
            target = self._place(step, name)
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path / name), target)
        for name, record in manifest.files.items():
            size = self._files.size(self._place(step, name))
            if size != record.num_bytes:
                raise OSError(f"{self.place(step)}/{name} holds {size} bytes after uploading {record.num_bytes}")
        self._files.pipe_file(self._place(step, MANIFEST_NAME), manifest_text(manifest).encode())

    def fetch(self, step: int, folder: Path) -> None:
        """Copy a checkpoint into an empty local folder; DamagedCheckpointError if a part of it is missing."""
        with self._storage():
            self._fetch(step, folder)

    def _fetch(self, step: int, folder: Path) -> None:
        try:
            text = self._files.cat_file(self._place(step, MANIFEST_NAME))
            for name in parse_manifest(text).files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(self._place(step, name), str(folder / name))
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"a file is missing: {error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedCheckpointError(f"{MANIFEST_NAME} cannot be read: {error}") from error
        (folder / MANIFEST_NAME).write_bytes(text)

    def set_aside(self, step: int) -> str:
        """Let a damaged checkpoint be taken for one no more; returns where it is."""
        with self._storage():
            self._files.mv(self._place(step, MANIFEST_NAME), self._place(step, ASIDE_NAME))
        return self.place(step)

    def remove(self, step: int) -> None:
        """Remove all of a checkpoint, or what there is of it."""
        marker, folder = self._place(step, MANIFEST_NAME), f"{self._root}/step_{step}"
        self._files.invalidate_cache()
        if self._files.exists(marker):
            self._files.rm_file(marker)
        if self._files.exists(folder):
            self._files.rm(folder, recursive=True)

    def remove_old(self, *, keep: int) -> None:
        """Remove all but the newest, and what is left of damaged and half uploaded ones older than them."""
        with self._storage():
            steps = self._steps()
            kept, newest = steps[-keep:], max(steps, default=-1)
            for step in self._all_steps() if steps else ():
                if step not in kept and step < newest:
                    self.remove(step)

    def _place(self, step: int, name: str) -> str:
        return f"{self._root}/step_{step}/{name}"
