"""Writes what a comparison found: `table.md`, `table.json` and the figures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from commands.compare.figures import CURVES, Curves, draw_curves, draw_planes, draw_positions
from commands.compare.plan import CompareConfig, PlannedRun
from commands.compare.results import accuracies, build_rows, to_markdown
from records.files import read_rows

RewardOf = Callable[[PlannedRun, Any, Any], Any]
"""(run, teacher probabilities, student probabilities) -> rewards, or None where they depend on more."""

PLANE_P = np.linspace(0.005, 0.995, 199)
"""Probabilities at which rewards are drawn: 0 and 1 left out, a log-ratio is infinite there."""


def write_results(
    config: CompareConfig, runs: Sequence[PlannedRun], *, reward_of: RewardOf, say: Callable[[str], object] = print
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
    if planes := planes_of(runs, reward_of):
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


def planes_of(runs: Sequence[PlannedRun], reward_of: RewardOf) -> dict[str, Any]:
    """By label the rewards over the plane (rows: teacher, columns: student), each reward once."""
    import torch

    p = torch.as_tensor(PLANE_P)
    teacher_p, student_p = torch.meshgrid(p, p, indexing="ij")
    planes: dict[str, Any] = {}
    for run in runs:
        reward = reward_of(run, teacher_p, student_p)
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
        rows = [row for run in runs for row in read_rows(run.folder.evaluations) if row["model"] == model]
        if rows:
            accuracy = np.mean([row["avg_at_k"] for row in rows])
            lines.append(f"{text}: avg@{first.evaluation.k} {accuracy:.3f}.")
    lines.append("\u00b1: standard deviation over seeds. Gradient norms are taken before clipping.")
    lines.append("Wall time includes start-up and evaluation; memory is that of all processes of a run together.")
    missing = [run.config.run_name for run in runs if not run.is_finished]
    if missing:
        lines.append(f"Not finished, and not in the table: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"
