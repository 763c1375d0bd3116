"""Rows of a benchmark are compared by ratio, with their own machine and settings alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import Change, changes, parse

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]


def row(lower: float, higher: float = 4.0, **fields: Any) -> dict[str, Any]:
    ratios = {
        "seconds: ours / theirs": {"median": lower, "min": 0.0, "max": 9.0, "better": "lower"},
        "rows: ours / theirs": {"median": higher, "min": 0.0, "max": 9.0, "better": "higher"},
    }
    common = {"benchmark": "b", "machine": "m", "date": "2026-01-01", "settings": {"size": 1, "runs": 5}}
    return common | {"ratios": ratios} | fields


def worse_by(*rows: dict[str, Any]) -> list[float]:
    return [round(each.worse_by, 6) for each in changes(rows)[0]]


def test_a_ratio_is_worse_in_the_direction_that_its_row_calls_better() -> None:
    assert worse_by(row(2.0, 4.0), row(2.5, 4.0)) == [0.25, 0.0]
    assert worse_by(row(2.0, 4.0), row(2.0, 3.2)) == [0.0, 0.25]
    assert worse_by(row(2.0, 4.0), row(1.0, 8.0)) == [-0.5, -0.5]


def test_only_the_last_two_rows_of_a_series_are_compared() -> None:
    found, _, _ = changes([row(1.0), row(2.0, date="2026-01-02"), row(3.0, date="2026-01-03")])
    assert (found[0].before, found[0].after, found[0].dates) == (2.0, 3.0, ("2026-01-02", "2026-01-03"))


@pytest.mark.parametrize("other", [{"machine": "n"}, {"benchmark": "c"}, {"settings": {"size": 2, "runs": 5}}])
def test_rows_of_another_machine_benchmark_or_setting_are_another_series(other: dict[str, Any]) -> None:
    assert changes([row(1.0), row(9.0, **other)]) == ([], 0, 2)
    assert worse_by(row(1.0), row(9.0, **other), row(1.5)) == [0.5, 0.0]


def test_the_number_of_runs_is_no_other_setting() -> None:
    assert worse_by(row(1.0), row(2.0, settings={"size": 1, "runs": 50})) == [1.0, 0.0]


def test_older_rows_are_skipped_and_counted() -> None:
    old = {"benchmark": "b", "date": "2025-01-01", "seconds_ratio": 1.0}
    assert changes([old, row(1.0), old]) == ([], 2, 1)


def test_a_ratio_that_one_row_lacks_is_not_compared() -> None:
    less = row(1.0)
    del less["ratios"]["rows: ours / theirs"]
    assert worse_by(less, row(1.0)) == [0.0]
    assert worse_by(row(1.0), less) == [0.0]


def test_from_zero_anything_is_worse_and_nothing_is_equal() -> None:
    def change(before: float, after: float) -> float:
        return Change("b", {}, "r", "lower", before, after, ("", "")).worse_by

    assert (change(0.0, 0.0), change(0.0, 1.0)) == (0.0, float("inf"))


def test_lines_that_are_no_rows_are_left_out_and_a_broken_row_is_named() -> None:
    assert parse(["warming up", '{"a": 1}', ""], "x") == [{"a": 1}]
    with pytest.raises(ValueError, match=r"x, line 2: not a row"):
        parse(["", '{"a": '], "x")


def compare(results: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "benchmarks/compare.py", f"--results={results}", *arguments]
    return subprocess.run(line, cwd=ROOT, input=given, capture_output=True, text=True, timeout=50, check=False)


def test_the_command_warns_and_only_with_strict_fails(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(row(2.0)) + "\n" + json.dumps(row(2.1)) + "\n")
    quiet = compare(tmp_path, "--strict")
    assert (quiet.returncode, "0 of 2 ratios are worse" in quiet.stdout) == (0, True)
    worse = json.dumps(row(2.5)) + "\n"
    assert "1 of 2 ratios are worse" in compare(tmp_path, "--row=-", given=worse).stdout
    (tmp_path / "fresh").write_text(worse)
    assert compare(tmp_path, f"--row={tmp_path / 'fresh'}").returncode == 0
    assert compare(tmp_path, f"--row={tmp_path / 'fresh'}", "--strict").returncode == 1
    assert compare(tmp_path, f"--row={tmp_path / 'fresh'}", "--strict", "--limit=0.2").returncode == 0
