"""Training under supervision: what is started again, when it is given up, and that nothing outlives it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

import launch
from commands.retries import Retries
from records.run_folder import RunFolder
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED

ROOT = Path(__file__).parents[2]

CHILD = """
import os, signal, sys, time
from pathlib import Path
from records.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.path.mkdir(exist_ok=True)
started = len(list(folder.path.glob("started-*")))
(folder.path / f"started-{started}").write_text(" ".join(sys.argv[3:]))
folder.owner.take((folder.ledger,))
what = sys.argv[2].split(",")[started]
for word in what.split("+"):
    match word.split("="):
        case ["step", number]: folder.add_step({"step": int(number)}, [])
        case ["exit", code]: sys.exit(int(code))
        case ["kill"]: os.kill(os.getpid(), signal.SIGKILL)
        case ["robbed"]: (folder.path / "owner.json").write_text('{"token": "x", "host": "another", "pid": 1}')
        case ["drain"]:
            for each in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, lambda *_: sys.exit(3))
            (folder.path / "ready").touch()
            time.sleep(60)
        case ["deaf"]:
            (folder.path / "ready").touch()
            time.sleep(60)
"""


def supervised(path: Path, script: str, *, retries: int) -> tuple[int, list[str], list[str]]:
    """Exit code, the resume flags of all starts, and what was said. `script` says what each start does."""
    said: list[str] = []
    retried = Retries(RunFolder(path), retries=retries, first_pause_s=0.01, say=said.append)
    line = [sys.executable, "-c", CHILD, str(path), script]
    code = retried.run([*line, "first"], [*line, "again"])
    starts = sorted(path.glob("started-*"), key=lambda each: int(each.name.split("-")[1]))
    return code, [start.read_text() for start in starts], said


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("code", [FINISHED, BAD_INPUT, DRAINED])
def test_a_run_that_ends_by_itself_is_not_started_again(tmp_path: Path, code: int) -> None:
    assert supervised(tmp_path, f"exit={code}", retries=3) == (code, ["first"], [])


def test_a_run_that_is_killed_or_fails_is_resumed(tmp_path: Path) -> None:
    code, starts, said = supervised(tmp_path, "step=1+kill,step=2+exit=1,step=3+exit=0", retries=1)
    assert (code, starts) == (FINISHED, ["first", "again", "again"])
    assert said == [
        "the run died by signal 9, at step 1; retry 1 of 1, 0.01 s",
        "the run failed with exit code 1, at step 2; retry 1 of 1, 0.01 s",
    ]


def test_retries_without_a_new_step_are_counted_and_end(tmp_path: Path) -> None:
    """A step that was reached before is none: a run that always dies after the same step makes no progress."""
    code, starts, said = supervised(tmp_path, "step=5+kill,step=4+kill,step=5+exit=1,exit=0", retries=2)
    assert (code, len(starts)) == (FAILED, 3)
    assert said[1:] == [
        "the run died by signal 9, at step 5; retry 2 of 2, 0.02 s",
        "the run failed with exit code 1; after 2 retries it is still at step 5",
    ]


@pytest.mark.parametrize(
    ("script", "retries", "code", "num_starts"),
    [
        ("exit=1,exit=1,exit=0", 1, FAILED, 2),
        ("step=1+kill,exit=2,exit=0", 2, FINISHED, 3),
        ("step=1+kill,exit=2,exit=2,exit=0", 2, BAD_INPUT, 3),
    ],
    ids=["never starts", "refused once when it is resumed", "refused whenever it is resumed"],
)
def test_retries_end_where_the_run_never_starts_and_a_refusal_is_tried_again_but_at_the_first_start(
    tmp_path: Path, script: str, retries: int, code: int, num_starts: int
) -> None:
    """When it is resumed its Ray may be restarting; bad input would have been refused at the first start."""
    ended, starts, _ = supervised(tmp_path, script, retries=retries)
    assert (ended, len(starts)) == (code, num_starts)


def test_a_run_whose_folder_another_took_over_is_left_to_it(tmp_path: Path) -> None:
    code, starts, said = supervised(tmp_path, "step=1+robbed+exit=1,exit=0", retries=5)
    assert (code, starts) == (FAILED, ["first"])
    assert "its folder is another process's now" in said[0]


def started(path: Path, script: str) -> subprocess.Popen[bytes]:
    """A supervisor in a process of its own, whose child is ready."""
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_supervised import supervised\n"
        "sys.exit(supervised(Path(sys.argv[1]), sys.argv[2], retries=3)[0])"
    )
    # `nohup make test` has SIGHUP ignored, and so have its children.
    heeded = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, "-c", program, str(path), script], cwd=ROOT, preexec_fn=heeded)
    until((path / "ready").exists)
    return process


def until(condition: Callable[[], object]) -> None:
    """Wait at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("child", "number"), [("drain", signal.SIGTERM), ("deaf", signal.SIGTERM), ("drain", signal.SIGHUP)]
)
def test_a_signal_is_passed_on_and_ends_the_supervision(
    tmp_path: Path, child: str, number: signal.Signals
) -> None:
    process = started(tmp_path, f"{child},exit=0")
    process.send_signal(number)
    assert process.wait(60) == DRAINED
    assert len([*tmp_path.glob("started-*")]) == 1


def test_the_run_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    process = started(tmp_path, "deaf")
    [child] = psutil.Process(process.pid).children()
    process.kill()
    process.wait(60)
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_a_negative_number_of_retries_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "--config", str(ROOT / "configs" / "demo.yaml"), "--run-name", "unused", "--retries", "-1"]
    assert launch.main(line) == BAD_INPUT
    assert capsys.readouterr().err == "error: --retries must be >= 0, got -1 (nearest valid: 0)\n"
