"""The curves of a report: what was learned, and how, by optimizer step. Several runs share each figure."""

from collections.abc import Sequence

from reporting.page.accuracy_figure import accuracy
from reporting.page.figure import Figure, Trace, axes, by_step, color, line, logarithmic, metric_lines, points
from reporting.page.run_data import RunData, mean, total

TENTHS = [(i + 0.5) / 10 for i in range(10)]
"""Middle of every tenth of a response."""

KL_CAPTION = "Lower is nearer to the teacher: the mean over trained tokens of student minus teacher log-prob."
LENGTH_CAPTION = "Tokens per trained response."
TRUNCATED_CAPTION = "Share of trained responses that were cut at the length limit."
GRADIENT_CAPTION = "Before clipping."
LOG_RATIO_CAPTION = (
    " The log-ratio's is what the plain log-ratio, as the reward, would have given on the same batch."
)
ENTROPY_CAPTION = "Of the student at the trained tokens; a fall to 0 means it has become certain."
SHARE = by_step("share", tickformat=".1~%", rangemode="tozero")


def learning_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Accuracy, distance to the teacher, responses and gradients; figures without data are left out.

    Of several runs each figure has one curve for each.
    """
    is_one = len(runs) == 1
    lengths = {"response_length/mean": "mean"} | ({"response_length/max": "longest"} if is_one else {})
    norms = {"grad_norm": "this objective"} | ({"grad_norm/log_ratio": "log-ratio"} if is_one else {})
    parts = [
        ("kl", "Reverse KL", KL_CAPTION, {"kl/reverse": "reverse KL"}, by_step("nats per token")),
        ("length", "Response length", LENGTH_CAPTION, lengths, by_step("tokens", rangemode="tozero")),
        ("truncated", "Truncated responses", TRUNCATED_CAPTION, {"truncated_frac": "truncated"}, SHARE),
        ("entropy", "Entropy", ENTROPY_CAPTION, {"entropy": "entropy"}, by_step("nats", rangemode="tozero")),
    ]
    simple = [
        Figure(key, title, text, metric_lines(runs, names), layout) for key, title, text, names, layout in parts
    ]
    gradients = metric_lines(runs, norms)
    caption, layout = GRADIENT_CAPTION + LOG_RATIO_CAPTION * is_one, by_step("norm", **logarithmic(gradients))
    simple.insert(3, Figure("grad_norm", "Gradient norm", caption, gradients, layout))
    figures = [accuracy(runs), *simple, reward_quantiles(runs), reward_by_position(runs), staleness(runs)]
    return [figure for figure in figures if figure.traces]


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
