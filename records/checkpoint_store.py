"""All checkpoints of a run: in its folder, in another one, or in remote storage with its folder for staging."""

import errno
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from records import checkpoints, files
from records.checkpoints import (
    MANIFEST_NAME,
    CheckpointManifest,
    DamagedCheckpointError,
    manifest_text,
    parse_manifest,
    read_manifest,
)
from records.run_folder import RunFolder
from settings.run import RunConfig

_STEP_FOLDER = re.compile(r"step_(\d+)")
ASIDE_NAME = "damaged.json"
"""What the manifest of a damaged checkpoint is called, so that it is not taken for one any more."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """A verified checkpoint in a local folder."""

    path: Path
    manifest: CheckpointManifest


def check_checkpoints(config: RunConfig, folder: RunFolder, *, resume: bool) -> None:
    """Raise ValueError if the storage that `checkpoint.path` names does not answer or is an earlier run's."""
    store = CheckpointStore.of(config, folder)
    try:
        steps = store.steps()
    except OSError as error:
        raise ValueError(f"checkpoint.path: {store.place} cannot be read: {error}") from error
    if steps and not resume:
        raise ValueError(
            f"checkpoint.path: {store.place} holds checkpoints of an earlier run of this name, up to step "
            f"{steps[-1]}; choose another path or run_name"
        )


class CheckpointStore:
    """Writes, finds and removes checkpoints. Its calls read and write files: not for the event loop's thread."""

    def __init__(
        self,
        local: Path,
        *,
        keep: int,
        remote: "RemoteFolder | None" = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """`check` is called before anything is put in place or removed, and may refuse with its own error."""
        self._check = check
        self.local = local
        self._keep = keep
        self._remote = remote

    @classmethod
    def of(cls, config: RunConfig, folder: RunFolder) -> "CheckpointStore":
        """The store that `checkpoint.path` names."""
        settings = config.checkpoint
        if settings.url is not None:
            remote = RemoteFolder(f"{settings.url.rstrip('/')}/{config.run_name}")
            return cls(folder.checkpoints, keep=settings.keep, remote=remote, check=folder.owner.check)
        local = folder.checkpoints if settings.path is None else Path(settings.path) / config.run_name
        return cls(local, keep=settings.keep, check=folder.owner.check)

    @property
    def place(self) -> str:
        """Where checkpoints are kept, for messages."""
        return str(self.local) if self._remote is None else self._remote.url

    def free_bytes(self) -> int:
        """Free space on the local disk."""
        return files.free_bytes(self.local)

    # -- writing --

    def try_writing(self) -> None:
        """Write and remove a small file where checkpoints go; OSError if that fails. Leaves no folder."""
        if self._remote is not None:
            self._remote.try_writing()
            return
        there = next(path for path in (self.local, *self.local.absolute().parents) if path.exists())
        with tempfile.NamedTemporaryFile(prefix=".try-", dir=there):
            pass

    def start(self, step: int) -> Path:
        """Make and return an empty folder that the ranks write to."""
        self._check()
        return checkpoints.start(self._path(step)).resolve()

    def discard(self, step: int) -> None:
        """Remove that folder."""
        self._check()
        checkpoints.discard(self._path(step))

    def commit(self, step: int, manifest: CheckpointManifest) -> str:
        """Make that folder a checkpoint, upload it, and remove those that are too old; returns where it is."""
        path = self._path(step)
        checkpoints.commit(path, manifest, check=self._check)
        if self._remote is None:
            checkpoints.remove_old(self.local, keep=self._keep, check=self._check)
            return str(path)
        self._check()
        try:
            self._remote.upload(path, step, check=self._check)
        except OSError:
            checkpoints.remove_old(self.local, keep=self._keep, check=self._check)  # until one is uploaded
            raise
        self._check()
        for uploaded in checkpoints.committed_steps(self.local):
            checkpoints.remove(self._path(uploaded))
            self._check()
        for leftover in self.local.glob("step_*.*"):
            checkpoints.remove_tree(leftover)
        self._remote.remove_old(keep=self._keep)
        return self._remote.place(step)

    # -- finding --

    def newest_manifest(self) -> tuple[str, CheckpointManifest] | None:
        """Where the newest readable checkpoint is, and its manifest; its files are not read."""
        local = checkpoints.committed_steps(self.local)
        for step in reversed(self.steps()):
            try:
                found = read_manifest(self._path(step)) if step in local else self._remote_manifest(step)
                return self.place_of(step), found
            except DamagedCheckpointError:  # it is set aside when one is restored
                continue
        return None

    def _remote_manifest(self, step: int) -> CheckpointManifest:
        assert self._remote is not None, f"there is no step {step}"
        return self._remote.manifest(step)

    def recover(self) -> None:
        """Tidy up what a killed run left; not while a checkpoint is being written."""
        checkpoints.recover(self.local, check=self._check)

    def steps(self) -> list[int]:
        """Steps of committed checkpoints, oldest first."""
        remote = [] if self._remote is None else self._remote.steps()
        return sorted({*checkpoints.committed_steps(self.local), *remote})

    def fetch(self, step: int) -> FoundCheckpoint:
        """Verify a checkpoint, after copying it here if need be; DamagedCheckpointError saying why it is none."""
        path = self._path(step)
        if step in checkpoints.committed_steps(self.local):
            try:
                return FoundCheckpoint(path, checkpoints.verify(path))
            except DamagedCheckpointError:
                if self._remote is None or step not in self._remote.steps():
                    raise
                checkpoints.set_aside(path)
        assert self._remote is not None, f"there is no step {step}"
        self._check()
        temporary = checkpoints.start(path)
        self._remote.fetch(step, temporary)
        manifest = checkpoints.verify(temporary)
        checkpoints.commit(path, manifest, check=self._check)
        return FoundCheckpoint(path, manifest)

    def set_aside(self, step: int) -> None:
        """Let a damaged checkpoint be taken for one no more; nothing of it is lost."""
        self._check()
        checkpoints.discard(self._path(step))
        if step in checkpoints.committed_steps(self.local):
            checkpoints.set_aside(self._path(step))
        if self._remote is not None and step in self._remote.steps():
            self._remote.set_aside(step)

    def place_of(self, step: int) -> str:
        """Where a checkpoint is, for messages."""
        if self._remote is None or step in checkpoints.committed_steps(self.local):
            return str(self._path(step))
        return self._remote.place(step)

    def _path(self, step: int) -> Path:
        return checkpoints.step_path(self.local, step)


class RemoteFolder:
    """Checkpoints `URL/step_N` (any fsspec URL): uploaded with the manifest last, removed with it first.

    Its calls block, and raise OSError for whatever the storage answers.
    """

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

    def try_writing(self) -> None:
        """Write and remove a small file beside the checkpoints."""
        name = f"{self._root}/.try-{uuid.uuid4().hex}"
        with self._storage():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(name, b"1")
            self._files.rm_file(name)

    def place(self, step: int) -> str:
        """The URL of a checkpoint."""
        return f"{self.url}/step_{step}"

    def upload(self, path: Path, step: int, *, check: Callable[[], object] = lambda: None) -> None:
        """Copy a complete checkpoint there, in place of an older one of the step.

        `check` is called before it counts as complete, and may refuse with an error of its own.
        """
        manifest = read_manifest(path)
        with self._storage():
            self._upload(path, step, manifest)
        check()
        with self._storage():
            self._files.pipe_file(self._place(step, MANIFEST_NAME), manifest_text(manifest).encode())

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

    def manifest(self, step: int) -> CheckpointManifest:
        """What a checkpoint holds; DamagedCheckpointError without a readable manifest."""
        with self._storage():
            try:
                return parse_manifest(self._files.cat_file(self._place(step, MANIFEST_NAME)))
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedCheckpointError(f"{MANIFEST_NAME} cannot be read: {error}") from error

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
