"""A checkpoint folder exists if and only if it is complete."""

import sys
from pathlib import Path

import pytest

from learner import checkpoint


def manifest(path: Path, **state: object) -> checkpoint.CheckpointManifest:
    return checkpoint.CheckpointManifest(
        world_size=2,
        zero_stage=2,
        dtype="float32",
        file_bytes=checkpoint.file_sizes(checkpoint.temporary_path(path)),
        client_state=dict(state),
    )


def write(root: Path, step: int, **state: object) -> Path:
    path = checkpoint.step_path(root, step)
    checkpoint.start(path)
    folder = checkpoint.temporary_path(path) / "deepspeed"
    folder.mkdir()
    (folder / "shard_0").write_bytes(b"weights")
    checkpoint.flush(path)
    checkpoint.commit(path, manifest(path, **state))
    return path


def test_client_state_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 3, next_slot=17)
    assert checkpoint.read_manifest(path).client_state == {"next_slot": 17}


def test_an_uncommitted_folder_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 3)
    checkpoint.start(checkpoint.step_path(tmp_path, 4))
    (tmp_path / "step_5").mkdir()
    assert checkpoint.committed_steps(tmp_path) == [3]
    assert checkpoint.newest_checkpoint(tmp_path) == tmp_path / "step_3"
    with pytest.raises(ValueError, match="is not complete"):
        checkpoint.read_manifest(tmp_path / "step_5")


def test_an_interrupted_attempt_is_dropped_by_the_next(tmp_path: Path) -> None:
    checkpoint.start(tmp_path / "step_4")
    (tmp_path / "step_4.tmp" / "leftover").write_text("half")
    path = write(tmp_path, 4)
    assert list(checkpoint.read_manifest(path).file_bytes) == ["deepspeed/shard_0"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_4"]


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        write(tmp_path, step)
    assert checkpoint.newest_checkpoint(tmp_path) == tmp_path / "step_10"


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest_checkpoint(tmp_path / "absent") is None


def test_old_checkpoints_are_removed_beyond_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert checkpoint.remove_old(tmp_path, keep=2) == [tmp_path / "step_1"]
    assert checkpoint.committed_steps(tmp_path) == [2, 3]
    with pytest.raises(ValueError, match="keep must be >= 1"):
        checkpoint.remove_old(tmp_path, keep=0)


def test_the_same_step_again_replaces_the_older_one(tmp_path: Path) -> None:
    write(tmp_path, 3, course=0)
    path = write(tmp_path, 3, course=1)
    assert checkpoint.read_manifest(path).client_state == {"course": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_3"]


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    (path / "deepspeed" / "shard_0").write_bytes(b"weig")
    with pytest.raises(ValueError, match="shard_0 should hold 7 bytes, has 4"):
        checkpoint.read_manifest(path)


def test_another_world_size_is_refused_with_both_numbers(tmp_path: Path) -> None:
    found = checkpoint.read_manifest(write(tmp_path, 3))
    checkpoint.check_world(found, world_size=2, zero_stage=2, path="p")
    with pytest.raises(ValueError, match="written by 2 learner ranks and cannot be read by 3"):
        checkpoint.check_world(found, world_size=3, zero_stage=2, path="p")
    with pytest.raises(ValueError, match="zero_stage 2, not 3"):
        checkpoint.check_world(found, world_size=2, zero_stage=3, path="p")


def test_checkpoint_functions_need_no_torch() -> None:
    source = Path(sys.modules[checkpoint.__name__].__file__ or "").read_text()
    assert "import torch" not in source
