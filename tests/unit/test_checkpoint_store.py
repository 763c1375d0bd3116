"""Checkpoints in the run folder or in remote storage: marker last, found, fetched, set aside, removed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from records.checkpoint_store import ASIDE_NAME, CheckpointStore, RemoteFolder, check_checkpoints
from records.checkpoints import MANIFEST_NAME, CheckpointManifest, DamagedCheckpointError, record_of
from records.run_folder import RunFolder
from settings.learner import CheckpointConfig
from tests.unit.test_learner_scene import run_config


class RecordingFileSystem(LocalFileSystem):
    """A storage of its own: local files under another protocol, which writes down what is put and can fail."""

    protocol = "recorded"
    cachable = False
    names: ClassVar[list[str]] = []
    fails: ClassVar[bool] = False

    def put_file(self, path1: str, path2: str, callback: Any = None, **options: Any) -> None:
        """Copy, and note the name."""
        if self.fails:
            raise RuntimeError("the storage's client has an error of its own")
        type(self).names.append(str(path2).rpartition("/")[2])
        shutil.copyfile(path1, str(self._strip_protocol(path2)))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write, and note the name."""
        type(self).names.append(str(path).rpartition("/")[2])
        Path(str(self._strip_protocol(path))).write_bytes(value)


class SilentFileSystem(LocalFileSystem):
    """A storage that does not answer."""

    protocol = "silent"

    def exists(self, path: str, **options: Any) -> bool:
        """Raise what is no OSError."""
        raise RuntimeError("no answer from the storage")


class ReadOnlyFileSystem(LocalFileSystem):
    """A storage that gives and does not take."""

    protocol = "readonly"
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Refuse, with an error of its own."""
        raise RuntimeError("403 Forbidden")


fsspec.register_implementation("readonly", ReadOnlyFileSystem)
fsspec.register_implementation("recorded", RecordingFileSystem)
fsspec.register_implementation("silent", SilentFileSystem)


@pytest.fixture(params=["local", "file", "recorded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """An empty store that keeps two."""
    RecordingFileSystem.names, RecordingFileSystem.fails = [], False
    (tmp_path / "local").mkdir()
    if request.param == "local":
        return CheckpointStore(tmp_path / "local", keep=2)
    remote = RemoteFolder(f"{request.param}://{tmp_path}/remote/run")
    return CheckpointStore(tmp_path / "local", keep=2, remote=remote)


def kept_path(tmp_path: Path, store: CheckpointStore, step: int) -> Path:
    """Where a checkpoint lies in the end."""
    remote = tmp_path / "remote" / "run"
    return (store.local if store._remote is None else remote) / f"step_{step}"


def write(store: CheckpointStore, step: int) -> str:
    """Commit a checkpoint of one file."""
    folder, content = store.start(step), f"weights of {step}".encode()
    (folder / "deep").mkdir()
    (folder / "deep" / "shard").write_bytes(content)
    files = {"deep/shard": record_of([content])}
    return store.commit(step, CheckpointManifest(1, 2, "float32", files, {"step": step}))


def test_what_is_committed_is_found_fetched_and_verified(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.steps() == []
    places = [write(store, step) for step in (1, 2, 3)]
    assert places[-1].endswith("step_3")
    assert store.steps() == [2, 3]
    assert not kept_path(tmp_path, store, 1).exists()
    assert kept_path(tmp_path, store, 3).is_dir()
    for step in (2, 3, 2):
        found = store.fetch(step)
        assert found.manifest.client_state == {"step": step}
        assert (found.path / "deep" / "shard").read_text() == f"weights of {step}"
    assert store.free_bytes() > 0


def test_staged_files_are_removed_once_they_are_uploaded_marker_last(tmp_path: Path) -> None:
    RecordingFileSystem.names, RecordingFileSystem.fails = [], False
    store = CheckpointStore(tmp_path / "local", keep=2, remote=RemoteFolder(f"recorded://{tmp_path}/remote"))
    write(store, 1)
    assert RecordingFileSystem.names == ["shard", MANIFEST_NAME]
    assert list(store.local.iterdir()) == []


def test_an_upload_that_fails_leaves_the_local_one_and_the_next_upload_removes_it(tmp_path: Path) -> None:
    RecordingFileSystem.names, RecordingFileSystem.fails = [], True
    store = CheckpointStore(tmp_path / "local", keep=2, remote=RemoteFolder(f"recorded://{tmp_path}/remote"))
    for step in (1, 2, 3):
        with pytest.raises(OSError, match="an error of its own"):
            write(store, step)
    assert store.steps() == [2, 3]  # here
    assert store.fetch(3).path == store.local / "step_3"
    RecordingFileSystem.fails = False
    write(store, 4)
    assert list(store.local.iterdir()) == []
    assert store.steps() == [4]


def change(path: Path) -> None:
    (path / "deep" / "shard").write_bytes(b"weights of 9")


def lose(path: Path) -> None:
    (path / "deep" / "shard").unlink()


def garble(path: Path) -> None:
    (path / MANIFEST_NAME).write_bytes(b"{")


@pytest.mark.parametrize("damage", [change, lose, garble])
def test_a_damaged_one_is_refused_and_set_aside_without_loss(
    store: CheckpointStore, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        write(store, step)
    damage(kept_path(tmp_path, store, 2))
    with pytest.raises(DamagedCheckpointError):
        store.fetch(2)
    assert store.steps() == [1, 2]
    store.set_aside(2)
    assert store.steps() == [1]
    aside = kept_path(tmp_path, store, 2)
    assert (store.local / "step_2.damaged").is_dir() or (aside / ASIDE_NAME).is_file()
    write(store, 2)
    write(store, 3)
    assert store.steps() == [2, 3]
    assert store.fetch(2).manifest.client_state == {"step": 2}


def test_an_upload_without_its_marker_is_none_and_is_removed_later(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "local", keep=1, remote=RemoteFolder(f"file://{tmp_path}/remote"))
    write(store, 1)
    half = tmp_path / "remote" / "step_2"
    half.mkdir()
    (half / "shard").write_text("half")
    assert store.steps() == [1]
    write(store, 3)
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == ["step_3"]


def test_the_path_decides_where_checkpoints_are(tmp_path: Path) -> None:
    def place(path: str | None) -> str:
        config = run_config("model", checkpoint={"path": path})
        return CheckpointStore.of(config, RunFolder(tmp_path / "run")).place

    assert place(None) == f"{tmp_path}/run/checkpoints"
    assert place(f"{tmp_path}/elsewhere") == f"{tmp_path}/elsewhere/run"
    assert place(f"file://{tmp_path}/there/") == f"file://{tmp_path}/there/run"


def test_a_new_run_does_not_take_over_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    config, folder = (
        run_config("model", checkpoint={"path": f"file://{tmp_path}/there"}),
        RunFolder(tmp_path / "run"),
    )
    check_checkpoints(config, folder, resume=False)
    write(CheckpointStore.of(config, folder), 5)
    check_checkpoints(config, folder, resume=True)
    with pytest.raises(ValueError, match=r"checkpoint.path: file://.*/there/run holds .* up to step 5"):
        check_checkpoints(config, folder, resume=False)


def test_a_storage_that_does_not_answer_is_found_before_the_run(tmp_path: Path) -> None:
    config = run_config("model", checkpoint={"path": f"silent://{tmp_path}/there"})
    with pytest.raises(ValueError, match=r"checkpoint\.path: .* cannot be read: .*no answer from the storage"):
        check_checkpoints(config, RunFolder(tmp_path / "run"), resume=False)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s4://bucket/folder", r"checkpoint.path: unknown protocol s4:// \(nearest valid: s3://\)"),
        ("memory://folder", "checkpoint.path must outlive the run"),
        ("file://", "checkpoint.path must name a folder"),
        ("s3://key:hush@bucket/folder", r"checkpoint.path must not hold credentials.*s3://bucket/folder"),
        ("abfs://box@account.net/folder?sig=hush", "checkpoint.path must not hold credentials"),
        (" ", "checkpoint.path must not be empty"),
    ],
)
def test_a_path_that_cannot_be_is_refused_without_repeating_secrets(path: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        CheckpointConfig(path=path)
    assert "hush" not in error.value.errors()[0]["msg"]


def test_that_checkpoints_can_be_written_is_tried_and_leaves_nothing(
    store: CheckpointStore, tmp_path: Path
) -> None:
    store.try_writing()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    CheckpointStore(tmp_path / "a" / "b", keep=2).try_writing()
    assert not (tmp_path / "a").exists()
    with pytest.raises(OSError, match="403 Forbidden"):
        CheckpointStore(tmp_path, keep=2, remote=RemoteFolder(f"readonly://{tmp_path}/remote/run")).try_writing()
