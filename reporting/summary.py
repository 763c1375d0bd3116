"""The end of a run in numbers: `summary.json` and the table on the terminal, both from the run's own files."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from evaluation.metrics import latest_rows, mean_of_rows
from records.run_folder import RunFolder
from reporting.advisor import advise, flow_means

STUDENTS = ("student_before", "student_after")


def summarise(folder: RunFolder, *, wall_s: float) -> dict[str, Any]:
    """Accuracies, reverse KL of the first and last tenth of the steps, what limited the run, and what it took."""
    summary = _accuracies(folder.evaluation_rows())
    steps = folder.valid_metrics("kl/reverse", "staleness/max", "tokens_trained")
    tenth = max(1, len(steps) // 10)
    advice = advise(steps)
    if advice is not None:
        summary["limit"] = advice.text
    wasted = _wasted(folder)
    if wasted:
        summary["wasted_tokens"] = wasted
    flow = flow_means(steps)
    if flow:
        summary["flow"] = flow
    reverse_kl = [row["kl/reverse"] for row in steps]
    return summary | {
        "kl_reverse_first": _mean(reverse_kl[:tenth]),
        "kl_reverse_last": _mean(reverse_kl[-tenth:]),
        "staleness_max": max((row["staleness/max"] for row in steps), default=0),
        "steps": len(steps),
        "tokens_trained": int(sum(row["tokens_trained"] for row in steps)),
        "wall_s": round(wall_s, 1),
    }


def _accuracies(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest numbers of every model but the student's in between; of several benchmarks the mean, and each.

    The benchmarks are under `benchmarks`, by name and then by model, where there are several.
    """
    newest: dict[str, Any] = {}
    for (_, model), by_benchmark in latest_rows(rows).items():
        if model in STUDENTS or _is_teacher(model):
            newest[model] = by_benchmark
    summary = {model: _numbers(mean_of_rows([*by_name.values()])) for model, by_name in newest.items()}
    names = list(dict.fromkeys(name for by_name in newest.values() for name in by_name))
    if len(names) > 1:
        summary["benchmarks"] = {
            name: {model: _numbers(by_name[name]) for model, by_name in newest.items() if name in by_name}
            for name in names
        }
    return summary


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    k = row.get("k", "k")
    named = {"avg_at_k": f"avg_at_{k}", "pass_at_k": f"pass_at_{k}"}
    return {named.get(key, key): row[key] for key in (*named, "mean_length", "truncated_frac") if key in row}


def accuracy_table(summary: dict[str, Any]) -> Table:
    """Teachers, student before and student after, one below the other; per benchmark where there are several."""
    table = Table(title="held-out accuracy")
    benchmarks = summary.get("benchmarks", {})
    tables = {**benchmarks, "mean": summary} if benchmarks else {"": summary}
    models = [name for name in summary if _is_teacher(name)] + [name for name in STUDENTS if name in summary]
    columns = list(summary[models[0]]) if models else []
    for column in (*(["benchmark"] if benchmarks else []), "model"):
        table.add_column(column)
    for column in columns:
        table.add_column(column.replace("_at_", "@").replace("_", " "), justify="right")
    for benchmark, by_model in tables.items():
        table.add_section()
        for name in (name for name in models if name in by_model):
            values = by_model[name]
            forms = {column: ".1f" if column == "mean_length" else ".3f" for column in columns}
            cells = [format(values[column], forms[column]) if column in values else "-" for column in columns]
            table.add_row(*([benchmark] if benchmarks else []), name.replace("_", " "), *cells)
    return table


def _wasted(folder: RunFolder) -> dict[str, int]:
    """Tokens that were generated and not trained on, by cause (`controller/meters.py`)."""
    rows = folder.metric_rows()
    counts = {key: count for key, count in (rows[-1] if rows else {}).items() if key.startswith("wasted/")}
    return {key.removeprefix("wasted/"): count for key, count in counts.items() if count}


def _is_teacher(name: str) -> bool:
    return name == "teacher" or name.startswith("teacher-")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
