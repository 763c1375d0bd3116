"""Writes what a comparison found, by objective with the spread over seeds: `table.md`, `table.json`, figures."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from commands.compare.figures import CURVES, Curves, draw_curves, draw_planes, draw_positions
from commands.compare.plan import ATTEMPTS, CompareConfig, PlannedRun
from evaluation.metrics import latest_rows, mean_of_rows
from records.files import NUMBER, has, read_rows
from records.metrics import OLD_KEYS

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
    rows = [row for row in run.folder.evaluation_rows() if row["model"].startswith("student")]
    found = {step: mean_of_rows([*by_name.values()]) for (step, _), by_name in latest_rows(rows).items()}
    return dict(sorted(found.items()))


def numbers_of(run: PlannedRun) -> RunNumbers:
    """The numbers of a finished run."""
    by_step = accuracies(run)
    final = by_step.get(run.config.max_steps, {})
    steps = run.folder.valid_metrics("tokens_trained")
    norms = [row["grad_norm"] for row in steps if "grad_norm" in row]
    median = statistics.median(norms) if norms else None
    attempts = read_rows(Path(run.config.runs_path) / ATTEMPTS, lambda row: has(row, run=str, wall_s=NUMBER))
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
        peak_memory_gib=max((row.get("peak_memory_gib") or 0.0 for row in attempts), default=0.0) or None,
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
    return _mean(row.get(OLD_KEYS.get(name, name)) for row in run.folder.valid_metrics())


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


PLANE_P = np.linspace(0.005, 0.995, 199)
"""Probabilities at which rewards are drawn: 0 and 1 left out, a log-ratio is infinite there."""


def write_results(
    config: CompareConfig, runs: Sequence[PlannedRun], *, say: Callable[[str], object] = print
) -> None:
    """Write table and figures of the finished runs; a figure without data is left out."""
    folder = Path(config.output_path)
    folder.mkdir(parents=True, exist_ok=True)
    rows, first = build_rows(runs, config.metrics), runs[0].config
    table = to_markdown(rows, k=first.evaluation.k)
    (folder / "table.md").write_text(table + "\n" + _notes(config, runs), encoding="utf-8")
    content = {
        **{"base": config.base, "overrides": config.overrides, "max_steps": first.max_steps},
        **{"batch_size": first.batch_size, "k": first.evaluation.k, "objectives": [asdict(row) for row in rows]},
    }
    (folder / "table.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for figure in CURVES:
        if curves := curves_of(runs, figure.key):
            draw_curves(figure, curves, folder / figure.file)
    if positions := positions_of(runs):
        draw_positions(positions, folder / "reward_by_position")
    if planes := planes_of(runs):
        draw_planes(PLANE_P, planes, folder / "reward_plane")
    say(f"\n{table}\ntable and figures in {folder}")


def curves_of(runs: Sequence[PlannedRun], key: str) -> dict[str, Curves]:
    """By label the values by step of each finished seed; labels without any are left out."""
    found: dict[str, Curves] = {}
    for run in runs:
        if run.is_finished:
            is_evaluated = key.startswith("eval/")
            rows = accuracies(run) if is_evaluated else {row["step"]: row for row in run.folder.valid_metrics()}
            values = {step: row[_column(key)] for step, row in rows.items() if _column(key) in row}
            if values:
                found.setdefault(run.label, []).append(values)
    return found


def positions_of(runs: Sequence[PlannedRun]) -> dict[str, tuple[Any, Any]]:
    """By label (mean_P, std_P) of the reward by tenth of the response, over all steps and finished seeds.

    Labels whose rewards are all zero are left out: divergences have none.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for label in dict.fromkeys(run.label for run in runs):
        finished = [run for run in runs if run.label == label and run.is_finished]
        rows = [row for run in finished for row in run.folder.valid_metrics()]
        mean_SP, std_SP = (_position_values(rows, name) for name in ("reward", "reward_std"))
        if mean_SP.any():
            mean_P = mean_SP.mean(0)
            found[label] = (mean_P, np.sqrt((std_SP**2 + mean_SP**2).mean(0) - mean_P**2))
    return found


def _position_values(rows: Sequence[dict[str, Any]], name: str) -> Any:
    """Values by step and tenth of the response; of steps that have them."""
    keys = [f"{name}/position_{index}" for index in range(10)]
    return np.array([[row[key] for key in keys] for row in rows if keys[0] in row], dtype=float)


def planes_of(runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """By label the rewards over the plane (rows: teacher, columns: student), each reward once.

    Objectives whose reward depends on more than the two probabilities are left out.
    """
    import torch

    from rewards.sampled import reward_of_log_probs

    p = torch.as_tensor(PLANE_P)
    teacher_p, student_p = torch.meshgrid(p, p, indexing="ij")
    planes: dict[str, Any] = {}
    for run in runs:
        name, parameters = run.config.objective.name, run.config.objective.parameters
        reward = reward_of_log_probs(
            name, parameters, teacher_p.log(), student_p.log(), max_steps=run.config.max_steps
        )
        if reward is not None and not any(np.array_equal(reward.numpy(), each) for each in planes.values()):
            planes[run.label] = reward.numpy()
    return planes


def _column(key: str) -> str:
    return key.removeprefix("eval/")


def _notes(config: CompareConfig, runs: Sequence[PlannedRun]) -> str:
    """What stands below the table: budget, the models that all runs share, how numbers are meant."""
    first = runs[0].config
    lines = [f"Every run: {config.base}, {first.max_steps} steps of {first.batch_size} prompts."]
    for model, text in (("teacher", "Teacher"), ("student_before", "Student before training")):
        rows = [row for run in runs for row in run.folder.evaluation_rows() if row["model"] == model]
        if rows:
            accuracy = np.mean([row["avg_at_k"] for row in rows])
            lines.append(f"{text}: avg@{first.evaluation.k} {accuracy:.3f}.")
    lines.append("\u00b1: standard deviation over seeds. Gradient norms are taken before clipping.")
    lines.append("Wall time includes start-up and evaluation; memory is that of all processes of a run together.")
    missing = [run.config.run_name for run in runs if not run.is_finished]
    if missing:
        lines.append(f"Not finished, and not in the table: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"
