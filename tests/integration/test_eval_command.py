"""`launch.py eval` with real engines on the demo's student: interrupted, resumed, finished; grading included."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from settings.exit_codes import BAD_INPUT, DRAINED, FINISHED

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"
NUM_PROBLEMS, N = 150, 2

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Sums in the words of the demo, and their answers."""
    problems = tmp_path / "data"
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", problems], check=True, timeout=60)
    path = tmp_path / "sums.jsonl"
    lines = (problems / "heldout.jsonl").read_text().splitlines()
    path.write_text("".join(line + "\n" for line in lines[:NUM_PROBLEMS]))
    return path


def command(path: Path, *options: str) -> list[str]:
    line = [sys.executable, "launch.py", "eval", "--model", str(MODELS / "teacher"), "--benchmarks", "sums"]
    line += ["--data", f"sums={path}", "--n", str(N), "--k", "1,2", "--max-tokens", "32", "--temperature", "0.6"]
    line += ["--stop-ids-of", str(MODELS / "student"), "--out", str(path.parent / "out"), "--seed", "3"]
    line += ["--rollout.num_workers", "2", "--rollout.resources.num_cpus", "0.5", "--cluster.num_cpus", "2"]
    line += ["--rollout.engine.max_num_seqs", "4", "--rollout.engine.kv_cache_gib", "0.25"]
    return [*line, *options]


def num_kept(out: Path) -> int:
    """Graded problems in the parts of an interrupted evaluation."""
    return sum(pq.ParquetFile(part).metadata.num_rows for part in out.glob("parts/*.parquet")) // N


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(benchmark: Path) -> None:
    out = benchmark.parent / "out"
    # A shell without job control lets what it starts in the background ignore SIGINT, and so the tests' children.
    process = subprocess.Popen(
        command(benchmark),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 200
        while num_kept(out) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    before = num_kept(out)
    assert process.returncode == DRAINED, errors
    assert "interrupted; the same command continues it" in errors
    assert 5 <= before < NUM_PROBLEMS

    def run(*options: str) -> Any:
        return subprocess.run(command(benchmark, *options), cwd=ROOT, capture_output=True, text=True, timeout=200)

    other = run("--top-p", "0.9")
    assert other.returncode == BAD_INPUT
    assert "holds an evaluation with top_p 1.0, and not 0.9" in other.stderr
    done = run()
    assert done.returncode == FINISHED, done.stderr[-3000:]
    assert f"{before} of {NUM_PROBLEMS} problems were graded before" in done.stderr
    check_results(out, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    started = time.monotonic()
    again = run()
    assert again.stdout == done.stdout
    assert time.monotonic() - started < 60, "finished results are only shown"


def check_results(out: Path, printed: list[dict[str, Any]]) -> None:
    """The numbers follow from the rows, which hold every problem's samples."""
    rows = pq.read_table(out / "sums.parquet").to_pylist()
    assert [row["sample"] for row in rows] == [*range(N)] * NUM_PROBLEMS
    assert len({row["problem_id"] for row in rows}) == NUM_PROBLEMS
    assert all(
        len(row["response_token_ids"]) == len(row["behaviour_log_probs"]) == row["num_tokens"] for row in rows
    )
    right = [row["correct"] for row in rows]
    one, two = json.loads((out / "summary.json").read_text())["results"]
    assert [{"model": str(MODELS / "teacher"), **row} for row in (one, two)] == printed
    assert [one["k"], two["k"]] == [1, 2]
    assert one["avg_at_k"] == pytest.approx(sum(right[::N]) / NUM_PROBLEMS)
    assert two["avg_at_k"] == pytest.approx(sum(right) / len(right))
    assert two["pass_at_k"] == pytest.approx(
        sum(map(any, zip(right[::2], right[1::2], strict=True))) / NUM_PROBLEMS
    )
    assert two["pass_at_k"] >= two["avg_at_k"] > 0.5
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert [settings[key] for key in ("n", "temperature", "top_p", "top_k", "seed", "max_tokens")] == [
        2,
        0.6,
        1.0,
        -1,
        3,
        32,
    ]
    assert settings["benchmarks"]["sums"]["size"] == NUM_PROBLEMS
    assert settings["stop_token_ids"]
    assert not (out / "parts").exists()
