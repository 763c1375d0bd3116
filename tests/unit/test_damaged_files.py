"""Files of a run folder that something else has damaged: what loses nothing is left out and named."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.orphans import check_has_ended
from commands.plan.run import run_virtually
from commands.report import write_report
from records.events import Events, record_data
from records.files import has, read_json, read_rows, write_json
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from reporting.model_card import model_card
from reporting.summary import summarise
from settings.run import RunConfig
from tests.simulated_run import run_config, simulated_evaluation, simulated_run

pytestmark = pytest.mark.timeout(60)

BAD_LINES = (
    b"\xff\x00",
    b"[" * 3000,
    b'{"a": ' * 3000,
    b"[1]",
    b"7",
    b"{}",
    b'{"step": "x"}',
    b'{"step": true, "event": 3, "model": null}',
    b'{"step": -1, "uids": [], "event": []}',
    b'{"step": 1e999, "rollback_to": -3}',
    b'{"step": 3, "kl/reverse": "x", "time/step_s": [], "staleness/max": {}, "uids": {"0": 1}}',
    b'{"model": "student_after", "step": 3}',
    b'{"model": "student_after", "step": 3, "benchmark": 7, "avg_at_k": 0.5}',
    b'{"model": "student_after", "step": 3, "avg_at_k": 0.5, "k": "x", "pass_at_k": "y"}',
    b'{"when": [], "time": "x", "kind": 3}',
)
ROW_FILES = ("metrics.jsonl", "ledger.jsonl", "events.jsonl", "eval.jsonl", "timeline.jsonl", "samples.jsonl")
OBJECTS = ("cluster.json", "owner.json", "summary.json", "environment.json", "data_report.json", "preflight.json")
BAD_OBJECTS = (b"", b"null", b"7", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"pid": "x", "token": 3, "host": []}')


def damage_rows(folder: RunFolder) -> None:
    """Put bad lines before, between and behind the rows of every file."""
    for name in ROW_FILES:
        path = folder.path / name
        lines = path.read_bytes().splitlines() if path.is_file() else []
        mixed = [*BAD_LINES, *(line for good in lines for line in (good, BAD_LINES[0])), *BAD_LINES]
        path.write_bytes(b"".join(line + b"\n" for line in mixed))


def trained(tmp_path: Path, steps: int, *, resume: bool) -> tuple[RunConfig, RunFolder]:
    """A run to so many steps, with evaluations and checkpoints."""
    config = run_config(
        tmp_path, max_steps=steps, checkpoint={"every_steps": 2}, evaluation={"teacher": True, "every_steps": 2}
    )

    async def scenario() -> RunFolder:
        async with simulated_run(config, resume=resume, evaluation=simulated_evaluation(4)) as run:
            await run.pipeline.run()
            return run.folder

    return config, run_virtually(scenario())


def test_a_run_continues_and_ends_well_whatever_rows_its_files_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, first = trained(tmp_path, 4, resume=False)
    damage_rows(first)
    with caplog.at_level(logging.WARNING):
        config, folder = trained(tmp_path, 8, resume=True)
        damage_rows(folder)
        summary = summarise(folder, wall_s=1.0)
        card = model_card(folder, config, step=8, name="x")
        write_report([folder], folder.report)
    ledger = valid_ledger(folder.ledger)
    slots = sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)
    assert (sorted(ledger), slots) == ([*range(1, 9)], [*range(64)])
    assert summary["steps"] == 8
    assert summary["student_after"]["mean_length"] > 0
    assert "student" in card
    assert folder.report.stat().st_size > 10_000
    for name in ("metrics.jsonl", "eval.jsonl", "events.jsonl"):
        assert any(
            f"{name}: " in text and "damaged rows are left out (line 1, 2, 3" in text for text in caplog.messages
        )


@pytest.mark.parametrize("content", BAD_OBJECTS)
def test_a_run_continues_whatever_its_other_files_hold(tmp_path: Path, content: bytes) -> None:
    config = run_config(tmp_path)
    RunFolder.of(config, resume=False).open(config)
    for name in OBJECTS:
        (tmp_path / "simulated" / name).write_bytes(content)
    folder = RunFolder.of(config, resume=True)
    check_has_ended(folder)
    folder.open(config)
    report: dict[str, Any] = {"fingerprint": "a", "sources": []}
    record_data(folder, Events(folder.events, folder.owner), report)
    assert folder.owner.is_held
    assert read_json(folder.data_report) == report
    (folder.path / "environment.json").write_bytes(content)
    assert "poweropd" in model_card(folder, config, step=1, name="x")
    write_report([folder], folder.report)


def test_the_configuration_of_a_run_stays_until_another_one_is_accepted(tmp_path: Path) -> None:
    first = run_config(tmp_path, max_steps=4)
    RunFolder.of(first, resume=False).open(first)
    other = run_config(tmp_path, max_steps=9)
    folder = RunFolder.of(other, resume=True)
    folder.open(other)
    saved = folder.path / "config.yaml"
    assert "max_steps: 4" in saved.read_text()  # what follows may still refuse the other
    folder.accept(other)
    assert "max_steps: 9" in saved.read_text()


def test_a_full_disk_is_said_with_the_name_of_the_file_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path)
    folder = RunFolder.of(config, resume=False)
    folder.open(config)
    before = {*folder.path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*summary.json'"):
        folder.write_summary({})
    folder.metrics.write_bytes(b"")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        folder.flush()
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: full(0))
    with pytest.raises(OSError, match=r"No space left on device: '.*other.json'"):
        write_json(folder.path / "other.json", {})
    assert {*folder.path.iterdir()} == before | {folder.metrics}


def test_a_count_is_a_whole_number_of_a_size_that_can_be(tmp_path: Path) -> None:
    assert has({"step": 3, "name": "x"}, step=int, name=str)
    assert not any(has({"step": value}, step=int) for value in (True, -1, 2**63, 10**300, 1.0, "1", None, []))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, -1, 2)))
    assert [row["step"] for row in read_rows(path, lambda row: has(row, step=int))] == [1, 2]
