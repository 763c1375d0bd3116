"""Where the time goes: tokens per second of every pool, and the learner's time by stage."""

from collections.abc import Sequence

from reporting.page.figure import Figure, Trace, axes, by_step, color, line, points
from reporting.page.run_data import Row, RunData, number

MAX_BARS = 120

STAGES = {
    "time/rollout_wait_s": "waits for rollouts",
    "time/score_wait_s": "waits for scores",
    "time/train_s": "trains",
    "time/publish_s": "publishes",
}
OTHER = "other"


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
    """Share of the time with work in hand, by pool."""
    caption = "Share of the workers' time with work in hand; of the learner, of training and publishing."
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
