"""All checkpoints of a run: in its folder, in another one, or in remote storage with its folder for staging."""

from dataclasses import dataclass
from pathlib import Path

from records import checkpoints, disk
from records.checkpoints import CheckpointManifest, DamagedCheckpointError
from records.remote_folder import RemoteFolder
from records.run_folder import RunFolder
from settings.run import RunConfig


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

    def __init__(self, local: Path, *, keep: int, remote: RemoteFolder | None = None) -> None:
        self.local = local
        self._keep = keep
        self._remote = remote

    @classmethod
    def of(cls, config: RunConfig, folder: RunFolder) -> "CheckpointStore":
        """The store that `checkpoint.path` names."""
        settings = config.checkpoint
        if settings.url is not None:
            remote = RemoteFolder(f"{settings.url.rstrip('/')}/{config.run_name}")
            return cls(folder.checkpoints, keep=settings.keep, remote=remote)
        local = folder.checkpoints if settings.path is None else Path(settings.path) / config.run_name
        return cls(local, keep=settings.keep)

    @property
    def place(self) -> str:
        """Where checkpoints are kept, for messages."""
        return str(self.local) if self._remote is None else self._remote.url

    def free_bytes(self) -> int:
        """Free space on the local disk."""
        return disk.free_bytes(self.local)

    # -- writing --

    def start(self, step: int) -> Path:
        """Make and return an empty folder that the ranks write to."""
        return checkpoints.start(self._path(step)).resolve()

    def discard(self, step: int) -> None:
        """Remove that folder."""
        checkpoints.discard(self._path(step))

    def commit(self, step: int, manifest: CheckpointManifest) -> str:
        """Make that folder a checkpoint, upload it, and remove those that are too old; returns where it is."""
        path = self._path(step)
        checkpoints.commit(path, manifest)
        if self._remote is None:
            checkpoints.remove_old(self.local, keep=self._keep)
            return str(path)
        try:
            self._remote.upload(path, step)
        except OSError:
            checkpoints.remove_old(self.local, keep=self._keep)  # they stay here until one is uploaded
            raise
        for uploaded in checkpoints.committed_steps(self.local):
            checkpoints.remove(self._path(uploaded))
        for leftover in self.local.glob("step_*.*"):
            checkpoints.remove_tree(leftover)
        self._remote.remove_old(keep=self._keep)
        return self._remote.place(step)

    # -- finding --

    def recover(self) -> None:
        """Tidy up what a killed run left; not while a checkpoint is being written."""
        checkpoints.recover(self.local)

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
        temporary = checkpoints.start(path)
        self._remote.fetch(step, temporary)
        manifest = checkpoints.verify(temporary)
        checkpoints.commit(path, manifest)
        return FoundCheckpoint(path, manifest)

    def set_aside(self, step: int) -> None:
        """Let a damaged checkpoint be taken for one no more; nothing of it is lost."""
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
