"""While the disk takes nothing a run continues: rows wait in memory, and a checkpoint in writing fails alone."""

import errno
import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner.checkpoint_writer import CheckpointWriter
from records.events import Events
from records.files import RowFile, free_bytes, is_disk_error, read_rows
from records.ledger import valid_ledger
from records.ownership import Ownership
from records.run_folder import RunFolder
from reporting.live.tensorboard import TensorBoard
from tests.unit.full_disk import files_end_at


def test_rows_wait_in_memory_and_are_written_once_there_is_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, late = RowFile(tmp_path / "rows.jsonl"), list[tuple[Path, int, int]]()
    rows.on_late = lambda *note: late.append(note)
    rows.append({"row": 0})
    with files_end_at(15):  # the second row fits in part
        rows.append({"row": 1})
        rows.append({"row": 2})
        assert rows.path.read_text() == '{"row": 0}\n'
        assert [row["row"] for row in rows.kept] == [1, 2]
        with pytest.raises(OSError, match="File too large"):
            rows.flush()
    rows.append({"row": 3})
    assert [row["row"] for row in read_rows(rows.path)] == [0, 1, 2, 3]
    assert late == [(rows.path, 3, 0)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_the_oldest_rows_are_dropped_beyond_the_bound_and_counted(tmp_path: Path) -> None:
    rows, late = RowFile(tmp_path / "rows.jsonl", max_kept=2), list[tuple[Path, int, int]]()
    rows.on_late = lambda *note: late.append(note)
    with files_end_at(0):
        for number in range(5):
            rows.append({"row": number})
    rows.flush()
    assert [row["row"] for row in read_rows(rows.path)] == [3, 4]
    assert late == [(rows.path, 2, 3)]


def test_an_error_that_is_not_the_disks_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RowFile(tmp_path / "absent" / "rows.jsonl").append({})
    assert not is_disk_error(NotADirectoryError(errno.ENOTDIR, "a file"))
    assert is_disk_error(OSError(errno.ENOSPC, "no space"))
    assert free_bytes(tmp_path / "absent" / "deeper") > 0


def test_the_ledger_loses_nothing_and_the_run_reports_that_rows_came_late(tmp_path: Path) -> None:
    folder, events = RunFolder(tmp_path), Events(tmp_path / "events.jsonl")
    folder.on_late(events.add_late)
    with files_end_at(0):
        for step in (1, 2):
            folder.add_step({"step": step}, [f"{step}-0-p-0"])
        events.add("something", reason="meanwhile")
        assert [row["step"] for row in folder.valid_metrics()] == [1, 2]
        folder.roll_back_to(1)
        with pytest.raises(OSError, match="File too large"):
            folder.flush()
    folder.add_step({"step": 2}, ["2-0-q-0"])
    folder.flush()
    assert valid_ledger(folder.ledger) == {1: ["1-0-p-0"], 2: ["2-0-q-0"]}
    rows = read_rows(tmp_path / "events.jsonl")
    assert [row["event"] for row in rows] == ["something"] + ["rows_written_late"] * 3
    assert [(row["file"], row["rows"]) for row in rows[1:]] == [
        ("ledger.jsonl", 4),
        ("events.jsonl", 2),
        ("metrics.jsonl", 3),
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_scalars_are_written_later(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.step({"step": 1, "loss": 1.0})
    with files_end_at(0):
        for step in (2, 3):
            writer.step({"step": step, "loss": float(step)})
    writer.step({"step": 4, "loss": 4.0})
    writer.close()
    found: list[int] = []
    for file in sorted(tmp_path.iterdir()):
        accumulator = EventAccumulator(str(file), size_guidance={"tensors": 0}).Reload()
        if "loss" in accumulator.Tags()["tensors"]:
            found += [event.step for event in accumulator.Tensors("loss")]
    assert sorted(found) == [1, 2, 3, 4]


@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_that_the_disk_does_not_take_is_reported_and_not_raised(
    tmp_path: Path, in_background: bool
) -> None:
    writer = CheckpointWriter(tmp_path, in_background=in_background)
    with files_end_at(5000):
        writer.add({"small": torch.zeros(10)}, tmp_path / "small.pt")
        writer.add({"large": torch.zeros(10_000)}, tmp_path / "large.pt")
        writer.add({"later": torch.zeros(10)}, tmp_path / "later.pt")
        writer.close()
        writer.join()
    report = writer.report
    assert report is not None
    assert report.failure == "OSError: File too large: large.pt"
    assert list(report.files) == ["small.pt"]


@pytest.mark.parametrize("code", ["EROFS", "ESTALE", "ETIMEDOUT", "EACCES"])
def test_what_a_network_file_system_answers_while_it_is_away_costs_no_row(tmp_path: Path, code: str) -> None:
    is_away = [True]

    def check() -> None:
        if is_away[0]:
            raise OSError(getattr(errno, code), code)

    rows = RowFile(tmp_path / "rows.jsonl", check=check)
    rows.append({"step": 1})
    assert read_rows(rows.path) == []
    is_away[0] = False
    rows.append({"step": 2})
    assert read_rows(rows.path) == [{"step": 1}, {"step": 2}]


def test_an_event_is_kept_while_nobody_can_say_who_owns_the_folder(tmp_path: Path) -> None:
    class Away(Ownership):
        """Ownership of a folder whose server is away."""

        is_away = True

        def check(self) -> None:
            if self.is_away:
                raise OSError(errno.ESTALE, "Stale file handle")

    owner = Away(tmp_path)
    events = Events(tmp_path / "events.jsonl", owner)
    events.add("first")
    owner.is_away = False
    events.add("second")
    names = [row["event"] for row in read_rows(tmp_path / "events.jsonl")]
    assert names == ["first", "second", "rows_written_late"]
