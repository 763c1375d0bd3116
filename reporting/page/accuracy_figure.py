"""Held-out accuracy by step: a curve for each run and benchmark, its teachers as dotted lines."""

from collections import defaultdict
from collections.abc import Sequence

from reporting.page.figure import Figure, Trace, by_step, line, thinned
from reporting.page.run_data import RunData, number

CAPTION = "Share of right answers on problems that are not trained on (avg@k). Dotted: the teacher."

STUDENT = "student"

Curves = dict[tuple[str, str], list[tuple[float, float]]]
"""(step, accuracy) by model (student, or the role of a teacher) and benchmark."""


def accuracy(runs: Sequence[RunData]) -> Figure:
    """The figure; without any evaluation it has no traces."""
    found = [_curves(run) for run in runs]
    has_several = len({benchmark for curves in found for _, benchmark in curves}) > 1
    traces: list[Trace] = []
    color = 0
    for run, curves in zip(runs, found, strict=True):
        last = max((step for each in curves.values() for step, _ in each), default=0.0)
        for benchmark in dict.fromkeys(benchmark for _, benchmark in curves):
            for model, each in ((model, each) for (model, on), each in curves.items() if on == benchmark):
                is_student = model == STUDENT
                parts = [run.name] * (len(runs) > 1) + [model] * (not is_student)
                name = ", ".join([*parts, *[benchmark] * (has_several or not parts)])
                traces.append(_trace(name, each, color, last=last, is_student=is_student))
            color += 1
    layout = by_step("avg@k", tickformat=".1~%", rangemode="tozero")
    return Figure("accuracy", "Accuracy", CAPTION, traces, layout)


def _curves(run: RunData) -> Curves:
    curves: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in run.evaluations:
        value, step, model = number(row, "avg_at_k"), number(row, "step"), str(row.get("model", ""))
        if value is not None and step is not None:
            name = STUDENT if model.startswith(STUDENT) else model
            curves[name, str(row.get("benchmark", "held out"))].append((step, value))
    return dict(curves)


def _trace(name: str, found: list[tuple[float, float]], color: int, *, last: float, is_student: bool) -> Trace:
    if is_student:
        kept = thinned(sorted(dict(found).items()))  # of a step evaluated twice the last
        return line([step for step, _ in kept], [value for _, value in kept], name, color)
    return line([0.0, max(last, 1.0)], [found[-1][1]] * 2, name, color, dash=2, mode="lines")
