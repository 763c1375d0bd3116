"""Runs of the real command line on the demo's tiny models: how they are started, and what their folders say."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file

from records.ledger import valid_ledger

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "arithmetic"
MODELS = EXAMPLE / "models"
TIMEOUT_S = 600.0
"""For a run of half a minute: a busy machine is no failure, a run that hangs is."""

STEPS, BATCH = 10, 16
SYNCHRONOUS: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": BATCH,
    "max_staleness": 0,
    "batches_ahead": 0,
    "importance.name": "none",
    "learner.micro_batch_tokens": 256,
    "learner.learning_rate": 1e-3,
    "checkpoint.every_steps": 5,
    "logging.save_batches": "true",
}
"""A run whose every number can be computed again."""

EVALUATED = {"evaluation.max_problems": 8, "evaluation.num_samples": 2, "evaluation.k": 2, "cluster.num_cpus": 4}


def options(**settings: Any) -> list[str]:
    """Settings as options."""
    return [f"--{key}={value}" for key, value in settings.items()]


def write_problems(folder: Path) -> None:
    """Write the demo's problems to `folder/data`."""
    script = EXAMPLE / "problems.py"
    subprocess.run([sys.executable, script, "--out", folder / "data"], check=True, timeout=120)


def command(workspace: Path, name: str, *flags: str, **settings: Any) -> list[str]:
    """The command line of a run on the problems of a workspace."""
    data = workspace / "data"
    given = {"runs_path": workspace, "run_name": name} | EVALUATED
    given |= {"data.train_path": data / "train.jsonl", "evaluation.data_path": data / "heldout.jsonl"}
    line = [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *flags]
    return line + options(**given | settings)


def run(line: list[str], *, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run to the end; its output is shown if the test fails."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    print(done.stdout[-6000:], done.stderr[-6000:])
    return done


def weights_of(run_path: Path) -> dict[str, torch.Tensor]:
    """What a run exported."""
    return load_file(run_path / "export" / "model.safetensors")


def assert_trained_once(run_path: Path, *, steps: int, batch: int) -> None:
    """Every slot below steps * batch is in the valid ledger exactly once."""
    ledger = valid_ledger(run_path / "ledger.jsonl")
    assert sorted(ledger) == list(range(1, steps + 1))
    slots = sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)
    assert slots == list(range(steps * batch))


def batch_table(run_path: Path, step: int) -> pa.Table:
    """What a step of a run with one rank was trained on."""
    with pa.OSFile(str(run_path / "batches" / f"step_{step}_rank_0.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def batch_rows(run_path: Path, step: int) -> list[dict[str, Any]]:
    """The same as rows."""
    return batch_table(run_path, step).to_pylist()


@dataclass(frozen=True)
class DrainedRun:
    """A run that was interrupted: its folder, exit code and output."""

    path: Path
    code: int
    output: str


def exchange_words(tokenizer: Path) -> None:
    """Give two words each other's id, and take the last id away."""
    content = json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    del words["#"]
    tokenizer.write_text(json.dumps(content))


def interrupted(line: list[str], is_time: Callable[[], bool]) -> tuple[int, str]:
    """Send Ctrl-C to a command at some point; returns its exit code and output."""
    # A shell without job control lets what it starts in the background ignore SIGINT, and so the tests' children.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    merged: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(line, cwd=ROOT, preexec_fn=heeded, **merged) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not is_time() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    print(output[-6000:])
    return process.returncode, output
