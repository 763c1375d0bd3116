"""What docs/results/README.md says of its comparisons follows from the numbers of each run beside it."""

import json
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
STUDENT_T = {3: 4.302653, 5: 2.776445}
"""Two-sided 95 % of Student's t by the number of pairs."""

Runs = dict[str, list[float]]
Interval = tuple[float, float, float]


def runs_of(name: str) -> Runs:
    table = json.loads((RESULTS / name / "table.json").read_text())
    return {each["label"]: [run["avg_at_k"] for run in each["runs"]] for each in table["objectives"]}


def difference(one: list[float], other: list[float]) -> Interval:
    """Mean and 95 % interval of paired differences, in points."""
    points = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    reach = STUDENT_T[len(points)] * stdev(points) / sqrt(len(points))
    return mean(points), mean(points) - reach, mean(points) + reach


def row_of(label: str) -> str:
    lines = (RESULTS / "README.md").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"| {label} |"))


def is_shown(interval: Interval, text: str) -> bool:
    """Whether the text holds the interval, up to rounding: `+5.4 [3.2, 7.5]`."""
    mid, low, high = interval
    shown = [float(part) for part in text.replace("[", "").replace("]", "").replace(",", "").split()]
    return shown == pytest.approx([mid, low, high], abs=0.051)


DEMO = {
    "`log_clip`": "log_clip",
    "`log_tanh`": "log_tanh",
    "`log_ratio`, `zscore`": "log_ratio zscore",
    "`power`, alpha 0.1": "power alpha 0.1",
    "`power`, alpha 1": "power alpha 1",
    "`power`, alpha 5": "power alpha 5",
    "`power`, alpha 50": "power alpha 50",
    "`veto`, forward, full vocabulary": "veto",
    "`reverse_kl`, full vocabulary": "reverse_kl (full)",
    "`lsm`, `k` 8": "lsm k=8",
}
STALE = {"1, 1": "staleness 1 ahead 1", "4, 1": "staleness 4 ahead 1", "8, 2": "staleness 8 ahead 2"}


def test_the_differences_in_the_tables_are_those_of_the_runs() -> None:
    demo, stale = runs_of("demo"), runs_of("asynchronous")
    for label, name in DEMO.items():
        assert is_shown(difference(demo[name], demo["log_ratio (vanilla)"]), row_of(label).split("|")[3]), label
    for label, name in STALE.items():
        assert is_shown(difference(stale[name], stale["synchronous"]), row_of(label).split("|")[3]), label


def test_no_more_is_claimed_than_the_paired_differences_carry() -> None:
    demo, stale = runs_of("demo"), runs_of("asynchronous")
    vanilla, whole = demo["log_ratio (vanilla)"], ("veto", "reverse_kl (full)", "lsm k=8")
    sampled = [name for name in DEMO.values() if name not in whole]
    above = [name for name in DEMO.values() if difference(demo[name], vanilla)[1] > 0]
    assert [name for name in above if name in sampled] == ["power alpha 50"]
    assert {*above} - {"power alpha 50"} == {*whole}
    for lower, higher in pairwise(["log_clip", "power alpha 5", "power alpha 50", *whole]):
        assert difference(demo[higher], demo[lower])[1] < 0, (lower, higher)
    lows = {label: difference(stale[name], stale["synchronous"])[1] for label, name in STALE.items()}
    assert {label for label, low in lows.items() if low > -2} == {"4, 1", "8, 2"}
    text = " ".join((RESULTS / "README.md").read_text().split())
    assert "asynchronous, as the demo is" in text
    assert "for `1, 1` it is not" in text
