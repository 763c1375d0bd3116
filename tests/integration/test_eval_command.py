"""`launch.py eval` with real engines on the demo's teacher: interrupted, continued, finished; grading included."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from settings.exit_codes import BAD_INPUT, DRAINED, FINISHED
from tests.integration.real_run import MODELS, interrupted, options, run

NUM_PROBLEMS, N = 150, 2

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def benchmark(tmp_path: Path, workspace: Path) -> Path:
    """Sums in the words of the demo, and their answers."""
    path = tmp_path / "sums.jsonl"
    lines = (workspace / "data" / "heldout.jsonl").read_text().splitlines()
    path.write_text("".join(line + "\n" for line in lines[:NUM_PROBLEMS]))
    return path


def command(path: Path, *more: str) -> list[str]:
    settings = {
        **{"model": MODELS / "teacher", "benchmarks": "sums", "data": f"sums={path}", "n": N, "k": "1,2"},
        **{"max-tokens": 32, "temperature": 0.6, "stop-ids-of": MODELS / "student", "seed": 3},
        **{"rollout.num_workers": 2, "rollout.resources.num_cpus": 0.5, "cluster.num_cpus": 2},
        **{"rollout.engine.max_num_seqs": 4, "rollout.engine.kv_cache_gib": 0.25, "out": path.parent / "out"},
    }
    return [sys.executable, "launch.py", "eval", *options(**settings), *more]


def num_kept(out: Path) -> int:
    """Graded problems in the parts of an interrupted evaluation."""
    return sum(pq.ParquetFile(part).metadata.num_rows for part in out.glob("parts/*.parquet")) // N


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(benchmark: Path) -> None:
    out = benchmark.parent / "out"
    code, output = interrupted(command(benchmark), lambda: num_kept(out) >= 5)
    before = num_kept(out)
    assert code == DRAINED
    assert "interrupted; the same command continues it" in output
    assert 5 <= before < NUM_PROBLEMS

    other = run(command(benchmark, "--top-p", "0.9"))
    assert other.returncode == BAD_INPUT
    assert "holds an evaluation with top_p 1.0, and not 0.9" in other.stderr
    done = run(command(benchmark))
    assert done.returncode == FINISHED
    assert f"{before} of {NUM_PROBLEMS} problems were graded before" in done.stderr
    check_results(out, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    again = run(command(benchmark))  # shows what is finished
    assert again.stdout == done.stdout
    assert "problems were graded before" not in again.stderr


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
    pairs = zip(right[::2], right[1::2], strict=True)
    assert two["pass_at_k"] == pytest.approx(sum(map(any, pairs)) / NUM_PROBLEMS)
    assert two["pass_at_k"] >= two["avg_at_k"] > 0.5
    settings = json.loads((out / "summary.json").read_text())["settings"]
    wanted = {"n": 2, "temperature": 0.6, "top_p": 1.0, "top_k": -1, "seed": 3, "max_tokens": 32}
    assert {key: settings[key] for key in wanted} == wanted
    assert settings["benchmarks"]["sums"]["size"] == NUM_PROBLEMS
    assert settings["stop_token_ids"]
    assert not (out / "parts").exists()
