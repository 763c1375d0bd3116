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

from records.events import Events
from records.files import read_rows
from records.ownership import FILE, NotOwnerError, owner_of
from records.run_folder import RunFolder
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


@pytest.mark.parametrize("content", [None, "", "{"])
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
