"""Two drivers on one run folder: the one that opened it last writes, the other one ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from records.checkpoint_store import CheckpointStore
from records.checkpoints import CheckpointManifest
from records.events import Events
from records.files import read_rows
from records.ownership import FILE, NotOwnerError, owner_of
from records.run_folder import RunFolder
from tests.unit.full_disk import files_end_at
from tests.unit.test_run_folder import config, opened

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from records.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.owner.take((folder.ledger, folder.metrics))
for step in range(1, 10**9):
    folder.add_step({"step": step}, ["first"])
"""


def opened_again(path: Path) -> RunFolder:
    """The same folder, as another driver opens it to resume."""
    folder = RunFolder.of(config(path), resume=True)
    folder.open(config(path))
    return folder


def test_the_owner_is_a_process_and_a_token_that_is_new_each_time(tmp_path: Path) -> None:
    first = opened(tmp_path)
    owner = owner_of(first.path)
    assert owner is not None
    assert owner["pid"] == os.getpid()
    assert abs(owner["started"] - time.time()) < 24 * 3600
    second = opened_again(tmp_path)
    assert owner_of(first.path) != owner
    assert (first.owner.is_held, second.owner.is_held) == (False, True)


def test_who_lost_the_folder_writes_nothing_more(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.add_step({"step": 1}, ["a"])
    events = Events(first.events, first.owner)
    events.add("before")
    opened_again(tmp_path)
    before = {path: path.read_bytes() for path in first.path.iterdir() if path.is_file()}
    for write in (
        lambda: first.add_step({"step": 2}, ["b"]),
        lambda: first.add_evaluation({"step": 2}),
        lambda: first.write_summary({}),
        lambda: first.roll_back_to(0),
    ):
        with pytest.raises(NotOwnerError, match=rf"taken over by process {os.getpid()} on .* writes nothing more"):
            write()
    events.add("after")
    after = {path: path.read_bytes() for path in first.path.iterdir() if path.is_file() and path.stat().st_size}
    assert after == {path: content for path, content in before.items() if content}


def test_a_checkpoint_of_a_former_owner_is_not_committed(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.owner.check()
    opened_again(tmp_path)
    with pytest.raises(NotOwnerError):
        first.owner.check()


def test_of_two_first_starts_the_second_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    second = RunFolder.of(config(tmp_path), resume=False)
    first = opened(tmp_path)
    with pytest.raises(ValueError, match=r"run_name: the run folder .*first already exists; choose another name"):
        second.open(config(tmp_path, max_steps=7))
    assert first.owner.is_held
    assert "max_steps: 7" not in (first.path / "config.yaml").read_text()


def test_who_opens_a_folder_late_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    late = RunFolder.of(config(tmp_path), resume=True)
    first = opened_again(tmp_path)
    with pytest.raises(ValueError, match=rf"run_name: .*taken over by process {os.getpid()} on "):
        late.open(config(tmp_path))
    assert first.owner.is_held


@pytest.mark.parametrize("moment", range(1, 7))  # the token, ledger, metrics, events, configuration, environment
def test_wherever_a_driver_is_frozen_while_it_opens_the_folder_the_next_owner_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    replace, contents = os.replace, dict[Path, bytes]()
    before = opened(tmp_path)
    before.add_step({"step": 1}, ["a"])
    Events(before.events, before.owner).add("before")
    late, calls = RunFolder.of(config(tmp_path), resume=True), list[Path]()

    def freeze(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == moment:
            following = opened_again(tmp_path)
            following.add_step({"step": 2}, ["b"])
            files = (file for file in following.path.iterdir() if file.is_file())
            contents.update({file: file.read_bytes() for file in files if not file.name.startswith(".")})
        replace(source, target)

    monkeypatch.setattr(os, "replace", freeze)

    def open_late() -> None:
        late.open(config(tmp_path, max_steps=7))
        late.accept(config(tmp_path, max_steps=7))

    with pytest.raises((ValueError, NotOwnerError), match="taken over by process"):
        open_late()
    assert contents
    assert {file: file.read_bytes() for file in late.path.iterdir() if file.is_file()} == contents


def test_a_former_owner_touches_no_checkpoint(tmp_path: Path) -> None:
    first = opened(tmp_path)
    store = CheckpointStore.of(config(tmp_path), first)
    store.start(3)
    (first.checkpoints / "step_2.old").mkdir()
    opened_again(tmp_path)
    manifest = CheckpointManifest(1, 2, "float32", {}, {})
    for touch in (
        lambda: store.start(3),
        lambda: store.commit(3, manifest),
        lambda: store.discard(3),
        lambda: store.set_aside(3),
        store.recover,
    ):
        with pytest.raises(NotOwnerError):
            touch()
    assert sorted(path.name for path in first.checkpoints.iterdir()) == ["step_2.old", "step_3.tmp"]


def test_a_full_disk_leaves_nothing_of_a_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with files_end_at(1), pytest.raises(OSError, match="File too large"):
        folder.write_cluster({"address": "10.0.0.1:1"})
    (folder.path / ".owner.json.01234567").touch()  # of one that was killed
    opened_again(tmp_path)
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"token": 1}'])
def test_a_folder_whose_owner_cannot_be_read_is_nobodys(tmp_path: Path, content: str | None) -> None:
    folder = opened(tmp_path)
    (folder.path / FILE).unlink()
    if content is not None:
        (folder.path / FILE).write_text(content)
    assert owner_of(folder.path) is None
    with pytest.raises(NotOwnerError, match="taken over by someone"):
        folder.add_step({"step": 1}, ["a"])
    assert opened_again(tmp_path).owner.is_held


def test_a_driver_that_was_frozen_while_another_resumed_ends_without_a_row(tmp_path: Path) -> None:
    """Wherever it was frozen: between its look at the owner and its row, too."""
    for seed in range(8):
        folder = tmp_path / str(seed) / "first"
        folder.mkdir(parents=True)
        line = [sys.executable, "-c", WRITER, str(folder)]
        process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while len(read_rows(folder / "ledger.jsonl")) < 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
            time.sleep(random.Random(seed).random() * 0.05)
            process.send_signal(signal.SIGSTOP)
            second = opened_again(folder.parent)
            second.add_step({"step": 0}, ["second"])
            process.send_signal(signal.SIGCONT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 1
        assert "NotOwnerError" in errors
        owners = [row["uids"] for row in read_rows(second.ledger)]
        assert owners == [["first"]] * (len(owners) - 1) + [["second"]]
        assert json.loads(second.metrics.read_text().splitlines()[-1]) == {"step": 0}
