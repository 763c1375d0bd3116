"""`launch.py eval` with real engines on the demo's teacher: finished, interrupted, continued; grading included."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from settings.exit_codes import BAD_INPUT, DRAINED, FINISHED
from tests.integration.real_run import MODELS, interrupted, options, run

N = 2

pytestmark = pytest.mark.timeout(1500)


def write_sums(folder: Path, workspace: Path, *, number: int) -> Path:
    """Write sums in the words of the demo, and their answers."""
    path = folder / "sums.jsonl"
    lines = (workspace / "data" / "heldout.jsonl").read_text().splitlines()
    path.write_text("".join(line + "\n" for line in lines[:number]))
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


def printed_rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_an_evaluation_prints_and_leaves_the_numbers_that_follow_from_its_rows(
    tmp_path: Path, workspace: Path
) -> None:
    done = run(command(write_sums(tmp_path, workspace, number=12), "--rollout.num_workers=1"))
    assert done.returncode == FINISHED
    check_results(tmp_path / "out", printed_rows(done.stdout), num_problems=12)


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_with_what_is_missing(tmp_path: Path, workspace: Path) -> None:
    num_problems, out = 150, tmp_path / "out"
    benchmark = write_sums(tmp_path, workspace, number=num_problems)
    code, output = interrupted(command(benchmark), lambda: num_kept(out) >= 5)
    before = num_kept(out)
    assert code == DRAINED
    assert "interrupted; the same command continues it" in output
    assert 5 <= before < num_problems

    other = run(command(benchmark, "--top-p", "0.9"))
    assert other.returncode == BAD_INPUT
    assert "holds an evaluation with top_p 1.0, and not 0.9" in other.stderr
    done = run(command(benchmark))
    assert done.returncode == FINISHED
    assert f"{before} of {num_problems} problems were graded before" in done.stderr
    check_results(out, printed_rows(done.stdout), num_problems=num_problems)
    again = run(command(benchmark))  # shows what is finished
    assert again.stdout == done.stdout
    assert "problems were graded before" not in again.stderr


def check_results(out: Path, printed: list[dict[str, Any]], *, num_problems: int) -> None:
    """The numbers follow from the rows, which hold every problem's samples."""
    rows = pq.read_table(out / "sums.parquet").to_pylist()
    assert [row["sample"] for row in rows] == [*range(N)] * num_problems
    assert len({row["problem_id"] for row in rows}) == num_problems
    assert all(
        len(row["response_token_ids"]) == len(row["behaviour_log_probs"]) == row["num_tokens"] for row in rows
    )
    right = [row["correct"] for row in rows]
    one, two = json.loads((out / "summary.json").read_text())["results"]
    assert [{"model": str(MODELS / "teacher"), **row} for row in (one, two)] == printed
    assert [one["k"], two["k"]] == [1, 2]
    assert one["avg_at_k"] == pytest.approx(sum(right[::N]) / num_problems)
    assert two["avg_at_k"] == pytest.approx(sum(right) / len(right))
    pairs = zip(right[::2], right[1::2], strict=True)
    assert two["pass_at_k"] == pytest.approx(sum(map(any, pairs)) / num_problems)
    assert two["pass_at_k"] >= two["avg_at_k"] > 0.5
    settings = json.loads((out / "summary.json").read_text())["settings"]
    wanted = {
        "n": 2,
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": -1,
        "seed": 3,
        "max_tokens": 32,
        "grader": "strict",
    }
    assert {key: settings[key] for key in wanted} == wanted
    assert settings["benchmarks"]["sums"]["size"] == num_problems
    assert settings["stop_token_ids"]
    assert not (out / "parts").exists()
