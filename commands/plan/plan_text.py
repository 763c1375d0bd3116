"""A plan as text: the rates it goes by, what the run will do, and the worker counts that were tried."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from commands.plan.estimate import PlannedRates
from commands.plan.prediction import FitCheck, Prediction
from commands.plan.search import Search
from settings.teachers import field_of

SHOWN_RATES = {
    "rollout": ("step_s", "sequence_s", "max_num_seqs", "prefill_tokens_per_s", "fetch_s", "load_s"),
    "teacher": ("prefill_tokens_per_s", "call_s"),
    "learner": ("step_s", "tokens_per_s", "publish_s"),
    "lengths": ("prompt", "median", "spread", "max"),
}


def show(
    console: Console,
    planned: PlannedRates,
    prediction: Prediction,
    found: Search | None,
    check: FitCheck | None,
) -> None:
    """Print everything."""
    console.print(_rates_table(planned))
    if check is not None:
        line = f"the run itself: {check.simulated_tokens_per_s:,.0f} tokens/s simulated with these rates"
        console.print(
            f"{line}, {check.measured_tokens_per_s:,.0f} measured ({check.ratio:.2f})\n", highlight=False
        )
    console.print(_prediction_table(prediction))
    console.print(prediction.advice, style="bold", highlight=False)
    if prediction.responses_per_simulated > 1:
        console.print(f"(each simulated response stands for {prediction.responses_per_simulated})", style="dim")
    if found is not None:
        if found.candidates:
            console.print(_search_table(found))
        for line in _conclusion(found):
            console.print(line, highlight=False, soft_wrap=True)


def _rates_table(planned: PlannedRates) -> Table:
    table = Table(title="rates", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("rate", "value", "origin"):
        table.add_column(name, justify="right" if name == "value" else "left")
    values = planned.rates.model_dump()
    for section, names in SHOWN_RATES.items():
        for name in names:
            table.add_row(f"{section}.{name}", _number(values[section][name]), planned.origin_of(section, name))
    return table


def _prediction_table(prediction: Prediction) -> Table:
    table = Table(
        title=f"prediction for {_workers(prediction.workers)}",
        title_justify="left",
        show_header=False,
        box=box.SIMPLE,
    )
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in prediction.shares.items())
    table.add_row("trained tokens/s", _number(prediction.tokens_per_s))
    table.add_row("seconds per step", _number(prediction.step_s))
    table.add_row("steps per hour", _number(prediction.steps_per_h))
    table.add_row("staleness", f"mean {prediction.staleness_mean:.2f}, max {prediction.staleness_max:.0f}")
    table.add_row("the learner's time", shares)
    if prediction.gpus:
        table.add_row("GPUs", _number(prediction.gpus))
        table.add_row("GPU-hours per million tokens", _number(prediction.gpu_hours_per_million_tokens))
    return table


def _search_table(found: Search) -> Table:
    title = f"candidates for {found.tokens_per_s:,.0f} tokens/s ({found.step_s:.3g} s per step)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    roles = list(found.candidates[0].workers)
    for name in (*roles, "tokens/s", "s/step", "stale", "GPUs", "GPU-h/M"):
        table.add_column(name, justify="right")
    table.add_column("limit")
    table.add_column("")
    for each in found.candidates:
        mark = "chosen" if each is found.chosen else ("enough" if each.tokens_per_s >= found.tokens_per_s else "")
        cells = [each.tokens_per_s, each.step_s, each.staleness_mean, each.gpus, each.gpu_hours_per_million_tokens]
        counts = [str(each.workers[role]) for role in roles]
        table.add_row(*counts, *map(_number, cells), each.limit, mark)
    return table


def _conclusion(found: Search) -> Iterator[str]:
    if found.reason:
        yield found.reason
    if found.chosen is not None:
        workers = found.chosen.workers
        running = " ".join(f"--{role} {count}" for role, count in workers.items() if role != "learner")
        yield f"train: {train_options(workers)}"
        yield f"scale: --run NAME {running}"


def _workers(workers: dict[str, int]) -> str:
    return ", ".join(f"{count} {role}" for role, count in workers.items())


def _number(value: float) -> str:
    if value and abs(value) < 10:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def train_options(workers: dict[str, int]) -> str:
    """The counts as options of `launch.py train`."""
    return " ".join(f"--{field_of(role)}.num_workers {count}" for role, count in workers.items())
