"""Weights & Biases: offline with the real package, and broken ones that a run does not notice."""

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reporting.live.wandb import WandbWriter, check_wandb, run_id
from settings.run import LoggingConfig

OFFLINE = LoggingConfig(wandb_project="tests", wandb_mode="offline", wandb_tags=["a"], wandb_timeout_s=60.0)


def records(file: Path) -> Iterator[Any]:
    """The records of a file that wandb wrote: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield Record.FromString(whole)
            whole = b""


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One start of a run that sends these rows."""
    writer = WandbWriter(OFFLINE, folder=folder, run_name="first", settings={"max_steps": 2})
    for row in rows:
        writer.step(row)
    writer.evaluation({"model": "student_after", "benchmark": "b", "step": 2, "k": 8, "avg_at_k": 0.75})
    writer.summary({"steps": 2})
    writer.close()


def test_an_offline_run_holds_metrics_evaluations_and_configuration_and_a_resumed_one_has_the_same_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [{"step": 1, "loss": 0.5, "note": "text"}, {"step": 2, "loss": 0.25}])
    write(tmp_path, [{"step": 2, "loss": 0.25}])
    assert caplog.text == ""
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    found = [list(records(file)) for file in files]
    history = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in found[0]
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [("1", "0.5"), ("2", "0.25")]
    assert [row["eval/b/avg_at_8"] for row in history if "eval/b/avg_at_8" in row] == ["0.75"]
    assert not any("note" in row for row in history)
    starts = [record.run for part in found for record in part if record.WhichOneof("record_type") == "run"]
    assert {start.run_id for start in starts} == {run_id(tmp_path, "first")}
    assert (starts[0].project, starts[0].display_name, [*starts[0].tags]) == ("tests", "first", ["a"])
    assert "max_steps" in {item.key for item in starts[0].config.update}
    exits = [
        record.exit.exit_code for part in found for record in part if record.WhichOneof("record_type") == "exit"
    ]
    assert exits == [0, 0]


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import time; time.sleep(600)", "did not finish within 1 s and is ended"),
        ("import sys; sys.stdin.close(); sys.exit('no api key configured')", "no api key configured"),
    ],
    ids=["hanging", "broken"],
)
def test_a_broken_or_hanging_one_costs_no_more_than_its_limit_at_the_end_and_is_one_logged_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, program: str, error: str
) -> None:
    config = OFFLINE.model_copy(update={"wandb_timeout_s": 1.0})
    command = (sys.executable, "-c", program)
    started = time.monotonic()
    writer = WandbWriter(config, folder=tmp_path, run_name="first", settings={}, command=command)
    for step in range(20_000):  # more than the queue and the pipe hold
        writer.step({"step": step, "loss": 0.5, "filler": 1.0})
    assert time.monotonic() - started < 5
    writer.close(has_failed=True)
    assert time.monotonic() - started < 15
    assert error in caplog.text
    assert sum("the run continues without it" in record.getMessage() for record in caplog.records) == 1


def test_a_missing_package_is_bad_input_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"wandb is not installed; install it \(pip install 'poweropd\[wandb\]'\)"
    ):
        check_wandb(OFFLINE)
    check_wandb(LoggingConfig(wandb_project="tests", wandb_mode="disabled"))
    check_wandb(LoggingConfig())
