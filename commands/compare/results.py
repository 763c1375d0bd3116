"""The numbers of a comparison: per run from its own files, per objective as mean and spread over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from commands.compare.plan import PlannedRun
from commands.compare.runs import ATTEMPTS
from evaluation.metrics import latest_rows, mean_of_rows
from records.files import read_rows

SHARE_OF_FINAL = 0.9
"""`steps_to_90_percent`: first evaluated step with so much of the run's final accuracy."""


@dataclass(frozen=True)
class RunNumbers:
    """What one finished run came to; None where it was not measured."""

    avg_at_k: float | None
    """Held-out accuracy after training, in [0, 1]."""
    pass_at_k: float | None
    """Share of held-out problems solved by one of k responses, after training."""
    mean_length: float | None
    """Tokens per held-out response after training."""
    steps_to_90_percent: int | None
    """First evaluated step with 90 % of the final avg@k; as fine as `evaluation.every_steps`."""
    first_grad_norm: float | None
    """Gradient norm of step 1, before clipping."""
    median_grad_norm: float | None
    """Median over all steps."""
    max_over_median_grad_norm: float | None
    """The largest step's gradient norm over the median: how spiky training is."""
    tokens_trained: int
    """Response tokens that entered the loss."""
    wall_s: float | None
    """Seconds from start to end with start-up and evaluation; of an interrupted run all attempts together."""
    peak_memory_gib: float | None
    """Largest memory of all processes of the run on this machine, sampled every 2 s; no GPU memory."""


@dataclass(frozen=True)
class Row:
    """One objective of the table; `mean` and `spread` are by column, over the finished seeds."""

    label: str
    settings: dict[str, Any]
    seeds: list[int]
    mean: dict[str, float | None]
    spread: dict[str, float | None]
    """Standard deviation (n - 1); None below two seeds."""
    runs: list[dict[str, Any]]


COLUMNS = {
    "avg_at_k": ("avg@{k}", "{:.3f}"),
    "pass_at_k": ("pass@{k}", "{:.3f}"),
    "mean_length": ("mean length", "{:.1f}"),
    "steps_to_90_percent": ("steps to 90 % of final avg@{k}", "{:.0f}"),
    "first_grad_norm": ("gradient norm, step 1", "{:.3g}"),
    "median_grad_norm": ("gradient norm, median", "{:.3g}"),
    "max_over_median_grad_norm": ("gradient norm, max/median", "{:.1f}"),
    "tokens_trained": ("tokens trained", "{:,.0f}"),
    "wall_s": ("wall time, s", "{:.0f}"),
    "peak_memory_gib": ("peak host memory, GiB", "{:.2f}"),
}
"""Title and format of each column, in order."""


def accuracies(run: PlannedRun) -> dict[int, dict[str, Any]]:
    """The student's evaluations by step, the mean over benchmarks; of a step evaluated twice the last one."""
    rows = [row for row in read_rows(run.folder.evaluations) if row["model"].startswith("student")]
    found = {step: mean_of_rows([*by_name.values()]) for (step, _), by_name in latest_rows(rows).items()}
    return dict(sorted(found.items()))


def numbers_of(run: PlannedRun) -> RunNumbers:
    """The numbers of a finished run."""
    by_step = accuracies(run)
    final = by_step.get(run.config.max_steps, {})
    steps = run.folder.valid_metrics()
    norms = [row["grad_norm"] for row in steps if "grad_norm" in row]
    median = statistics.median(norms) if norms else None
    attempts = read_rows(Path(run.config.runs_path) / ATTEMPTS)
    attempts = [row for row in attempts if row["run"] == run.config.run_name]
    enough = SHARE_OF_FINAL * final.get("avg_at_k", 2.0)
    reached = [step for step, row in by_step.items() if row["avg_at_k"] >= enough]
    return RunNumbers(
        avg_at_k=final.get("avg_at_k"),
        pass_at_k=final.get("pass_at_k"),
        mean_length=final.get("mean_length"),
        steps_to_90_percent=reached[0] if reached and run.config.evaluation.every_steps else None,
        first_grad_norm=norms[0] if norms else None,
        median_grad_norm=median,
        max_over_median_grad_norm=max(norms) / median if median else None,
        tokens_trained=int(sum(row["tokens_trained"] for row in steps)),
        wall_s=sum(row["wall_s"] for row in attempts) if attempts else run.summary.get("wall_s"),
        peak_memory_gib=max((row["peak_memory_gib"] or 0.0 for row in attempts), default=0.0) or None,
    )


def build_rows(runs: Sequence[PlannedRun], metrics: Sequence[str] = ()) -> list[Row]:
    """A row per objective, in the order of the plan; of unfinished runs nothing is taken.

    `metrics` are further columns: means over a run's steps of what it recorded under these names.
    """
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        planned = [run for run in runs if run.label == label]
        finished = [run for run in planned if run.is_finished]
        numbers = [numbers_of(run) for run in finished]
        columns = {each.name: [getattr(row, each.name) for row in numbers] for each in fields(RunNumbers)}
        columns |= {name: [_mean_of_steps(run, name) for run in finished] for name in metrics}
        objective = planned[0].config.objective.model_dump(mode="json")
        rows.append(
            Row(
                label=label,
                settings=objective,
                seeds=[run.seed for run in finished],
                mean={name: _mean(values) for name, values in columns.items()},
                spread={name: _spread(values) for name, values in columns.items()},
                runs=[{"seed": run.seed} | asdict(row) for run, row in zip(finished, numbers, strict=True)],
            )
        )
    return rows


def to_markdown(rows: Sequence[Row], *, k: int) -> str:
    """The table; a spread is shown from two seeds on."""
    further = {name: (f"`{name}`", "{:.3g}") for name in rows[0].mean if name not in COLUMNS}
    columns = COLUMNS | further
    shown = [name for name in columns if any(row.mean[name] is not None for row in rows)]
    lines = [["objective", "seeds", *(columns[name][0].format(k=k) for name in shown)]]
    lines.append(["---", *["---:"] * (len(shown) + 1)])
    for row in rows:
        seeds = " ".join(map(str, row.seeds)) or "-"
        lines.append([row.label, seeds, *(_cell(row, name, columns[name][1]) for name in shown)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: Row, name: str, template: str) -> str:
    mean, spread = row.mean[name], row.spread[name]
    if mean is None:
        return "-"
    return template.format(mean) + ("" if spread is None else f" \u00b1 {template.format(spread)}")


def _mean_of_steps(run: PlannedRun, name: str) -> float | None:
    return _mean(row.get(name) for row in run.folder.valid_metrics())


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None
