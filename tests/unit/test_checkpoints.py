"""A checkpoint folder exists if and only if it is complete, and is only used if it is whole."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from records import checkpoints
from records.checkpoints import DamagedCheckpointError


def write(root: Path, step: int, **state: object) -> Path:
    """A committed checkpoint of two files."""
    path = checkpoints.step_path(root, step)
    folder = checkpoints.start(path) / "deepspeed"
    folder.mkdir()
    contents = {"deepspeed/shard_0": b"weights", "random_rank_0.pt": b"random"}
    for name, content in contents.items():
        (checkpoints.temporary_path(path) / name).write_bytes(content)
    files = {name: checkpoints.record_of([content]) for name, content in contents.items()}
    checkpoints.commit(path, checkpoints.CheckpointManifest(2, 2, "float32", files, dict(state)))
    return path


def names(root: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(entry.name for entry in root.iterdir())


def test_an_uncommitted_folder_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 3)
    checkpoints.start(checkpoints.step_path(tmp_path, 4))
    (tmp_path / "step_5").mkdir()
    assert checkpoints.committed_steps(tmp_path) == [3]
    with pytest.raises(DamagedCheckpointError, match="is not complete"):
        checkpoints.verify(tmp_path / "step_5")


def test_an_interrupted_attempt_is_dropped_by_the_next(tmp_path: Path) -> None:
    checkpoints.start(tmp_path / "step_4")
    (tmp_path / "step_4.tmp" / "leftover").write_text("half")
    path = write(tmp_path, 4)
    assert "leftover" not in checkpoints.verify(path).files
    assert names(tmp_path) == ["step_4"]


def test_files_that_no_rank_reported_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "step_1"
    (checkpoints.start(path) / "stray").write_text("of nobody")
    checkpoints.commit(path, checkpoints.CheckpointManifest(1, 2, "float32", {}, {}))
    assert names(path) == [checkpoints.MANIFEST_NAME]


def test_steps_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        write(tmp_path, step)
    assert checkpoints.committed_steps(tmp_path) == [2, 9, 10]
    assert checkpoints.committed_steps(tmp_path / "absent") == []


def test_old_checkpoints_and_what_belongs_to_them_are_removed_beyond_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
        checkpoints.universal_path(tmp_path / f"step_{step}").mkdir()
    (tmp_path / "step_2.damaged").mkdir()
    (tmp_path / "step_4.damaged").mkdir()
    assert checkpoints.remove_old(tmp_path, keep=2) == [tmp_path / "step_1"]
    assert names(tmp_path) == ["step_2", "step_2.universal", "step_3", "step_3.universal", "step_4.damaged"]
    with pytest.raises(ValueError, match="keep must be >= 1"):
        checkpoints.remove_old(tmp_path, keep=0)


def test_the_same_step_again_replaces_the_older_one(tmp_path: Path) -> None:
    write(tmp_path, 3, attempt=0)
    path = write(tmp_path, 3, attempt=1)
    assert checkpoints.verify(path).client_state == {"attempt": 1}
    assert names(tmp_path) == ["step_3"]


def change_byte(path: Path) -> None:
    file = path / "deepspeed" / "shard_0"
    file.write_bytes(b"weighds")


def cut(path: Path) -> None:
    (path / "deepspeed" / "shard_0").write_bytes(b"weig")


def lose(path: Path) -> None:
    (path / "random_rank_0.pt").unlink()


def garble_manifest(path: Path) -> None:
    (path / checkpoints.MANIFEST_NAME).write_bytes(b"\0" * 200)


def change_manifest(path: Path) -> None:
    file = path / checkpoints.MANIFEST_NAME
    file.write_text(file.read_text().replace('"next_slot": 17', '"next_slot": 71'))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_byte, "shard_0 is damaged: its checksum differs"),
        (cut, "shard_0 should hold 7 bytes, has 4"),
        (lose, r"random_rank_0\.pt should hold 6 bytes, has None"),
        (garble_manifest, r"committed\.json cannot be read"),
        (change_manifest, r"committed\.json cannot be read: its checksum differs"),
    ],
)
def test_every_damage_is_found_and_named(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    path = write(tmp_path, 3, next_slot=17)
    damage(path)
    with pytest.raises(DamagedCheckpointError, match=reason):
        checkpoints.verify(path)


def test_a_damaged_checkpoint_set_aside_is_none_any_more(tmp_path: Path) -> None:
    (tmp_path / "step_3.damaged").mkdir()  # of an earlier time
    aside = checkpoints.set_aside(write(tmp_path, 3))
    assert names(tmp_path) == [aside.name] == ["step_3.damaged"]
    assert (aside / "deepspeed" / "shard_0").read_bytes() == b"weights"
    assert checkpoints.committed_steps(tmp_path) == []


def test_a_replaced_checkpoint_without_its_successor_is_restored(tmp_path: Path) -> None:
    """Killed between the two renames of a commit."""
    path = write(tmp_path, 3, attempt=0)
    os.replace(path, tmp_path / "step_3.old")
    checkpoints.start(path)
    checkpoints.recover(tmp_path)
    assert names(tmp_path) == ["step_3"]
    assert checkpoints.verify(path).client_state == {"attempt": 0}


def test_a_replaced_checkpoint_with_its_successor_and_half_written_or_removed_ones_are_dropped(
    tmp_path: Path,
) -> None:
    os.replace(write(tmp_path, 3, attempt=0), tmp_path / "step_3.old")
    write(tmp_path, 3, attempt=1)
    checkpoints.start(tmp_path / "step_4")
    (write(tmp_path, 1) / checkpoints.MANIFEST_NAME).unlink()
    checkpoints.universal_path(tmp_path / "step_3").mkdir()
    checkpoints.recover(tmp_path)
    assert names(tmp_path) == ["step_3", "step_3.universal"]
    assert checkpoints.verify(tmp_path / "step_3").client_state == {"attempt": 1}


def test_checkpoint_functions_need_no_torch() -> None:
    source = Path(sys.modules[checkpoints.__name__].__file__ or "").read_text()
    assert "import torch" not in source
