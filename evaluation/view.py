"""What a person sees of `launch.py eval`: progress with the time left, then a table; JSON lines for programs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LINE_EVERY_S = 10.0
"""Without a terminal a line is printed so often."""

PLAIN_WIDTH = 120
"""Columns where there is no terminal."""

COLUMNS = {
    "avg_at_k": "avg@k",
    "pass_at_k": "pass@k",
    "pass_at_k_unbiased": "unbiased pass@k",
    "maj_at_k": "maj@k",
    "mean_length": "mean length",
    "truncated_frac": "truncated",
}


class EvaluationView:
    """Progress on standard error. Use as a context manager."""

    def __init__(self, total: int, *, num_before: int = 0) -> None:
        """`num_before` problems were graded by an earlier run."""
        self._console = Console(stderr=True)
        self._total = total
        self._num_before = num_before
        self._bar = Progress(
            TextColumn("[bold]evaluation"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("problems"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("evaluation", total=total, completed=num_before)
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "EvaluationView":
        if self._num_before:
            self._say(f"{self._num_before} of {self._total} problems were graded before; the rest follows")
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, num_graded: int) -> None:
        """So many problems are graded."""
        self._bar.update(self._task, completed=num_graded)
        since = time.monotonic() - self._said
        if not self._console.is_terminal and (since >= LINE_EVERY_S or num_graded == self._total):
            self._said = time.monotonic()
            self._say(progress_line(num_graded, self._total, self._num_before, self._said - self._started))

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def progress_line(num_graded: int, total: int, num_before: int, seconds: float) -> str:
    """One line of progress, with the time left at the rate so far.

    >>> progress_line(30, 50, 10, 60.0)
    '30/50 problems graded in 60 s, about 60 s left'
    """
    done = num_graded - num_before
    left = f", about {seconds / done * (total - num_graded):.0f} s left" if done else ""
    return f"{num_graded}/{total} problems graded in {seconds:.0f} s{left}"


def print_results(summary: Mapping[str, Any], path: Path) -> None:
    """Print the table, then a JSON line per row on standard output; the last is the mean if there are several."""
    console = Console()
    shown = console if console.is_terminal else Console(width=PLAIN_WIDTH)
    shown.print(results_table(summary))
    shown.print(f"results in {path}", highlight=False, markup=False, soft_wrap=True)
    for row in (*summary["results"], *summary["mean"]):
        print(json.dumps({"model": summary["model"], **row}))


def results_table(summary: Mapping[str, Any]) -> Table:
    """A row per benchmark and k; the means over benchmarks come last."""
    settings = summary["settings"]
    drawn = f"n {settings['n']}, temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"
    drawn += f", top-k {settings['top_k']}, seed {settings['seed']}, at most {settings['max_tokens']} tokens"
    drawn += f", {settings.get('grader', 'strict')} grader"
    table = Table(title=summary["model"], caption=drawn)
    num_timed_out = sum(row["num_timed_out"] for row in summary["results"] if row["k"] == settings["k"][0])
    if num_timed_out:
        table.caption = f"{drawn}; {num_timed_out} responses took too long to grade, and count as wrong"
    table.add_column("benchmark")
    for name in ("problems", "k", *COLUMNS.values()):
        table.add_column(name, justify="right")
    for index, row in enumerate((*summary["results"], *summary["mean"])):
        cells = [f"{row[key]:.1f}" if key == "mean_length" else f"{row[key]:.3f}" for key in COLUMNS]
        if index == len(summary["results"]):
            table.add_section()
        table.add_row(row["benchmark"], str(row["num_problems"]), str(row["k"]), *cells)
    return table
