"""The comparison from the command line: real runs, interrupted by Ctrl-C and continued by the same command."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from records.files import read_rows
from records.ledger import valid_ledger
from tests.integration.real_run import ROOT, write_problems

pytestmark = [pytest.mark.timeout(800), pytest.mark.slow]

STEPS = 6


def command(folder: Path) -> list[str]:
    overrides = {
        "max_steps": STEPS,
        "batch_size": 16,
        "data.train_path": folder / "data" / "train.jsonl",
        "evaluation.data_path": folder / "data" / "heldout.jsonl",
        "evaluation.every_steps": 3,
        "evaluation.max_problems": 4,
        "evaluation.num_samples": 2,
        "evaluation.k": 2,
        "checkpoint.every_steps": 0,
        "cluster.num_cpus": 4,
    }
    objectives = [
        {"label": "vanilla", "settings": {"objective.name": "log_ratio"}},
        {"label": "veto (forward)", "settings": {"objective.name": "veto"}},
    ]
    values = {
        "base": str(ROOT / "configs" / "demo.yaml"),
        "runs_path": str(folder / "runs"),
        "output_path": str(folder / "results"),
        "overrides": {key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
        "objectives": objectives,
    }
    (folder / "compare.yaml").write_text(json.dumps(values))  # JSON is YAML
    return [sys.executable, "launch.py", "compare", "--config", str(folder / "compare.yaml")]


def test_an_interrupted_comparison_is_continued_by_the_same_command(tmp_path: Path) -> None:
    write_problems(tmp_path)
    line, first, second = (
        command(tmp_path),
        tmp_path / "runs" / "vanilla-seed0",
        tmp_path / "runs" / "veto-forward-seed0",
    )
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 240
        while not read_rows(first / "metrics.jsonl") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=200)
    print(output[-4000:])
    assert process.returncode == 3
    assert "interrupted; the same command continues" in output
    assert not second.exists()

    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=400)
    print(done.stdout[-4000:], done.stderr[-4000:])
    assert done.returncode == 0
    for path in (first, second):
        assert sorted(valid_ledger(path / "ledger.jsonl")) == list(range(1, STEPS + 1))
    table = json.loads((tmp_path / "results" / "table.json").read_text())
    vanilla, veto = table["objectives"]
    assert vanilla["mean"]["tokens_trained"] > 0
    assert vanilla["mean"]["first_grad_norm"] > veto["mean"]["first_grad_norm"] > 0
    assert vanilla["mean"]["peak_memory_gib"] > 0.5
    assert len([row for row in read_rows(tmp_path / "runs" / "attempts.jsonl") if row["run"] == first.name]) == 2

    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert again.stdout.count("(finished)") == 2
