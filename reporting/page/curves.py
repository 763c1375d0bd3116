"""The curves of a report: what was learned, and where the time went, by optimizer step. Runs share each figure."""

from collections import defaultdict
from collections.abc import Sequence

from records.metrics import METRICS
from reporting.page.figure import (
    Figure,
    Trace,
    axes,
    by_step,
    color,
    line,
    logarithmic,
    metric_lines,
    points,
    thinned,
)
from reporting.page.run_data import Row, RunData, mean, number, total

TENTHS = [(i + 0.5) / 10 for i in range(10)]
"""Middle of every tenth of a response."""

STAGES = {
    "time/rollout_wait_s": "waits for rollouts",
    "time/score_wait_s": "waits for scores",
    "time/train_s": "trains",
    "time/publish_s": "publishes",
}
OTHER = "other"
MAX_BARS = 120

STUDENT = "student"
Curves = dict[tuple[str, str], list[tuple[float, float]]]
"""(step, accuracy) by model (student, or the role of a teacher) and benchmark."""

SHARE = by_step("share", tickformat=".1~%", rangemode="tozero")

CURVES = {
    "kl": ("Reverse KL", by_step("nats per token")),
    "length": ("Response length", by_step("tokens", rangemode="tozero")),
    "truncated": ("Truncated responses", SHARE),
    "grad_norm": ("Gradient norm", None),
    "entropy": ("Entropy", by_step("nats", rangemode="tozero")),
}
"""Figures of plain curves: title, and layout (else logarithmic). The table of metrics says what they draw."""


def learning_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Accuracy, distance to the teacher, responses and gradients; figures without data are left out.

    Of several runs each figure has one curve for each.
    """
    figures = [accuracy(runs), *(_curves_of(runs, key) for key in CURVES)]
    figures += [reward_quantiles(runs), reward_by_position(runs), staleness(runs)]
    return [figure for figure in figures if figure.traces]


def _curves_of(runs: Sequence[RunData], figure: str) -> Figure:
    """The metrics that belong to a figure; of several runs the first of them alone."""
    title, layout = CURVES[figure]
    metrics = [metric for metric in METRICS if metric.report == title][: 1 if len(runs) > 1 else None]
    traces = metric_lines(runs, {metric.key: metric.key for metric in metrics})
    caption = " ".join(metric.text for metric in metrics)
    return Figure(figure, title, caption, traces, layout or by_step("norm", **logarithmic(traces)))


def reward_quantiles(runs: Sequence[RunData]) -> Figure:
    """How the rewards of the trained tokens are spread, by step."""
    traces: list[Trace] = []
    if len(runs) == 1:
        for low, high, opacity, name in (("p5", "p95", 0.22, "5 to 95 %"), ("p25", "p75", 0.42, "25 to 75 %")):
            upper, lower = (points(runs[0].rows, f"reward/{key}") for key in (high, low))
            if upper[0]:
                traces += _band(upper, lower, name, opacity)
        x, y = points(runs[0].rows, "reward/p50")
        traces += [line(x, y, "median", 0)] if x else []
    else:
        names = {"reward/p95": "95 %", "reward/p50": "median"}
        traces += metric_lines(runs, names)
    caption = "Rewards of the trained tokens as the loss used them: quantiles over all ranks. Not for divergences."
    return Figure(
        "reward", "Reward quantiles", caption, _unless_all_zero(traces), by_step("reward", zeroline=True)
    )


def _band(
    upper: tuple[list[float], list[float]], lower: tuple[list[float], list[float]], name: str, opacity: float
) -> list[Trace]:
    """An area between two curves."""
    hidden = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    edge = line(*lower, name, 0, **hidden)
    edge["line"] = {"width": 0}
    area = line(*upper, name, 0, mode="lines", fill="tonexty", fillcolor=color(0, opacity))
    area["line"] = {"width": 0, "color": color(0)}
    return [edge, area]


def reward_by_position(runs: Sequence[RunData]) -> Figure:
    """Mean reward over tenths of the response: of one run early, in the middle, and late in training."""
    traces: list[Trace] = []
    for place, run in enumerate(runs):
        parts = {"": run.rows}
        if len(runs) == 1:
            tenth = max(1, len(run.rows) // 10)
            middle = len(run.rows) // 2
            parts = {
                "first steps": run.rows[:tenth],
                "half-way": run.rows[middle : middle + tenth],
                "last steps": run.rows[-tenth:],
            }
        for index, (label, rows) in enumerate(parts.items()):
            values = [mean(rows, f"reward/position_{tenth}") for tenth in range(10)]
            if any(value is not None for value in values):
                x = [x for x, value in zip(TENTHS, values, strict=True) if value is not None]
                y = [value for value in values if value is not None]
                traces.append(line(x, y, label or run.name, index if len(runs) == 1 else place))
    caption = "Mean reward of the tokens in every tenth of the response: 0 is the first token, 1 the last."
    layout = axes("position in the response", "reward", zeroline=True)
    return Figure("position", "Reward by position", caption, _unless_all_zero(traces), layout)


def staleness(runs: Sequence[RunData]) -> Figure:
    """Share of trained tokens by staleness."""
    traces: list[Trace] = []
    for place, run in enumerate(runs):
        lags = sorted(
            {int(key.rpartition("_")[2]) for row in run.rows for key in row if key.startswith("staleness/lag_")}
        )
        counts = [total(run.rows, f"staleness/lag_{lag}") for lag in lags]
        if sum(counts) > 0:
            shares = [count / sum(counts) for count in counts]
            traces.append(
                {"type": "bar", "x": lags, "y": shares, "name": run.name, "marker": {"color": color(place)}}
            )
    caption = "Share of the trained tokens that were sampled so many weight versions earlier; 0 is fresh."
    layout = axes("weight versions behind", "share of tokens", tickformat=".1~%")
    layout["xaxis"] |= {"dtick": 1}
    return Figure("staleness", "Staleness", caption, traces, layout | {"showlegend": len(runs) > 1})


def _unless_all_zero(traces: list[Trace]) -> list[Trace]:
    """Nothing if every value is 0: an objective without rewards."""
    return traces if any(value for trace in traces for value in trace["y"]) else []


# -- accuracy -------------------------------------------------------------------------------------------------


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
    caption = "Share of right answers on problems that are not trained on (avg@k). Dotted: the teacher."
    return Figure("accuracy", "Accuracy", caption, traces, layout)


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


# -- time -----------------------------------------------------------------------------------------------------


def time_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Throughput and stages; figures without data are left out."""
    return [figure for figure in (throughput(runs), stages(runs), busy(runs)) if figure.traces]


def throughput(runs: Sequence[RunData]) -> Figure:
    """Tokens per second by pool."""
    caption = (
        "Rollout: response tokens. Teachers and reference: prompt and response tokens. Learner: tokens trained."
    )
    layout = by_step("tokens per second", rangemode="tozero")
    return Figure("throughput", "Throughput by pool", caption, _by_pool(runs, "throughput/"), layout)


def busy(runs: Sequence[RunData]) -> Figure:
    """Share of the time with any work, by pool."""
    caption = "Share of the workers' time with any work; of the learner, of training and publishing."
    layout = by_step("share", tickformat=".0%", range=[0, 1.02])
    return Figure("busy", "Use of the pools", caption, _by_pool(runs, "busy/"), layout)


def _by_pool(runs: Sequence[RunData], prefix: str) -> list[Trace]:
    """A curve for every pool and run: of one run a colour each, else a colour per run and a dash per pool."""
    traces: list[Trace] = []
    for place, run in enumerate(runs):
        keys = [key for key in (run.rows[-1] if run.rows else ()) if key.startswith(prefix)]
        for index, key in enumerate(sorted(keys)):
            x, y = points(run.rows, key)
            pool = key.removeprefix(prefix)
            if x and len(runs) == 1:
                traces.append(line(x, y, pool, index))
            elif x:
                traces.append(line(x, y, f"{run.name}: {pool}", place, dash=index))
    return traces


def stages(runs: Sequence[RunData]) -> Figure:
    """Seconds of a step by what the learner did: bars by step, of several runs their means."""
    if len(runs) == 1:
        steps, parts = _by_step(runs[0].rows)
        layout = by_step("seconds per step")
        caption = "What the learner did in each step; other: evaluation, checkpoints. Of many, bars are means."
    else:
        means = [_means(run.rows) for run in runs]
        steps = [run.name for run in runs]
        parts = {name: [each.get(name, 0.0) for each in means] for name in (*STAGES.values(), OTHER)}
        layout = axes("", "seconds per step")
        caption = "What the learner did in a step: means over all steps; other: evaluation, checkpoints."
    traces: list[Trace] = [
        {"type": "bar", "name": name, "x": steps, "y": values, "marker": {"color": color(index)}}
        for index, (name, values) in enumerate(parts.items())
        if any(values)
    ]
    return Figure(
        "stages", "Time per step by stage", caption, traces, layout | {"barmode": "stack", "bargap": 0.1}
    )


def _by_step(rows: Sequence[Row]) -> tuple[list[float | str], dict[str, list[float]]]:
    timed = [row for row in rows if number(row, "time/step_s") is not None and number(row, "step") is not None]
    size = -(-len(timed) // MAX_BARS) if timed else 1
    groups = [timed[start : start + size] for start in range(0, len(timed), size)]
    means = [_means(group) for group in groups]
    steps: list[float | str] = [group[len(group) // 2]["step"] for group in groups]
    return steps, {name: [each.get(name, 0.0) for each in means] for name in (*STAGES.values(), OTHER)}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Mean seconds per step by stage, and what is left."""
    timed = [row for row in rows if number(row, "time/step_s") is not None]
    if not timed:
        return {}
    sums = {name: sum(number(row, key) or 0.0 for row in timed) for key, name in STAGES.items()}
    whole = sum(row["time/step_s"] for row in timed)
    sums[OTHER] = max(0.0, whole - sum(sums.values()))
    return {name: value / len(timed) for name, value in sums.items()}
