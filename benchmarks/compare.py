"""Did a benchmark get worse? The newest row of each against the one before it, by ratios, never by absolute times.

    .venv/bin/python benchmarks/compare.py                          # all rows in benchmarks/results/
    .venv/bin/python benchmarks/learner.py | .venv/bin/python benchmarks/compare.py --row -
    .venv/bin/python benchmarks/compare.py --row fresh.jsonl --strict

Compared are rows of the same benchmark, machine and settings (`--runs` and `--warmup` aside), by the median of
each ratio. A ratio that is worse by more than `--limit`, in the direction that its row calls better, is warned of;
with `--strict` the exit code is then 1. `--row` gives fresh rows, which count as the newest. Rows without ratios,
from before `benchmarks/rows.py`, are skipped and counted.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import RESULTS_PATH

LIMIT = 0.1
NOT_COMPARED = ("runs", "warmup")
"""Settings that say how long was measured, and not what."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One ratio of the newest row of a series, beside that of the row before."""

    benchmark: str
    settings: Mapping[str, Any]
    ratio: str
    better: str
    before: float
    after: float
    dates: tuple[str, str]

    @property
    def worse_by(self) -> float:
        """By what part it got worse: 0.25 for 2.0 -> 2.5 where lower is better, for 2.5 -> 2.0 elsewhere."""
        old, new = (self.before, self.after) if self.better == "lower" else (self.after, self.before)
        return new / old - 1 if old else float("inf") if new else 0.0


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of some files of JSON lines, in order; ValueError with file and line for one that is none."""
    return [row for path in paths for row in parse(path.read_text(encoding="utf-8").splitlines(), str(path))]


def parse(lines: Iterable[str], name: str) -> list[Row]:
    """The rows among the lines of a benchmark's output: those that are JSON objects."""
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: not a row: {error}") from None
    return rows


def series_of(row: Row) -> str:
    """What a row may be compared with: benchmark, machine and settings as text."""
    settings = {key: value for key, value in row["settings"].items() if key not in NOT_COMPARED}
    return json.dumps([row["benchmark"], row["machine"], settings], sort_keys=True)


def changes(rows: Sequence[Row]) -> tuple[list[Change], int, int]:
    """Of every series of rows, the ratios that its last two rows share.

    Returns also how many rows have no ratios, and how many series have one row only.
    """
    with_ratios = [row for row in rows if row.get("ratios")]
    series: dict[str, list[Row]] = {}
    for row in with_ratios:
        series.setdefault(series_of(row), []).append(row)
    found = [
        Change(
            benchmark=new["benchmark"],
            settings=new["settings"],
            ratio=name,
            better=ratio["better"],
            before=old["ratios"][name]["median"],
            after=ratio["median"],
            dates=(old["date"], new["date"]),
        )
        for *_, old, new in (each for each in series.values() if len(each) > 1)
        for name, ratio in new["ratios"].items()
        if name in old["ratios"]
    ]
    alone = sum(len(each) == 1 for each in series.values())
    return found, len(rows) - len(with_ratios), alone


def table_of(found: Sequence[Change], *, limit: float) -> Table:
    """The changes as a table; those beyond the limit are marked."""
    table = Table("benchmark", "settings", "ratio", "better", "before", "now", "worse by")
    for each in found:
        is_worse = each.worse_by > limit
        style = "bold red" if is_worse else None
        settings = " ".join(f"{key}={value}" for key, value in each.settings.items() if key not in NOT_COMPARED)
        before, after = f"{each.before:.4g} ({each.dates[0]})", f"{each.after:.4g} ({each.dates[1]})"
        worse = f"{100 * each.worse_by:+.1f} %" + (" !" if is_worse else "")
        table.add_row(each.benchmark, settings, each.ratio, each.better, before, after, worse, style=style)
    return table


def main() -> None:
    """Print the table; exit code 1 with `--strict` where something got worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS_PATH, help="folder of rows [benchmarks/results]")
    parser.add_argument("--row", help="file with fresh rows, or - for standard input; only their series are shown")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"part by which a ratio may be worse [{LIMIT}]")
    parser.add_argument("--strict", action="store_true", help="exit code 1 with a warning")
    options = parser.parse_args()
    rows = read_rows(sorted(options.results.glob("*.jsonl")))
    if options.row is not None:
        lines = sys.stdin if options.row == "-" else Path(options.row).read_text(encoding="utf-8").splitlines()
        fresh = parse(lines, options.row)
        wanted = {series_of(row) for row in fresh if row.get("ratios")}
        rows = [row for row in rows if row.get("ratios") and series_of(row) in wanted] + fresh
    found, num_skipped, num_alone = changes(rows)
    warnings = [each for each in found if each.worse_by > options.limit]
    console = Console()
    console.print(table_of(found, limit=options.limit))
    console.print(
        f"{len(warnings)} of {len(found)} ratios are worse by more than {100 * options.limit:g} %; {num_alone} "
        f"series have one row only, and {num_skipped} rows have no ratios"
    )
    sys.exit(1 if options.strict and warnings else 0)


if __name__ == "__main__":
    main()
