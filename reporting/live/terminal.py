"""The live view of a run: its status (`RemoteControl.status`) as lines and tables for a terminal. Without Ray.

The run's own terminal and `launch.py status --watch` show the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from records.metric import keys_in
from records.metrics import METRICS
from reporting.advisor import percent
from reporting.live.monitor import clock_text

Status = Mapping[str, Any]

WIDE = 100
"""From this many columns on, the table of the pools has waits and back-pressure too."""

SIDE_BY_SIDE = 170
"""From this many columns on, pools and facts stand side by side."""

COLOURS = {
    **{"healthy": "green", "starting": "cyan", "restarting": "cyan", "stale": "yellow", "suspect": "yellow"},
    **{"draining": "yellow", "dead": "red"},
}


class LiveView:
    """A status as rich shows it, at whatever width there is."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, pools and facts."""
        yield live_view(self._status, width=options.max_width)


def live_view(status: Status, *, width: int) -> RenderableType:
    """The whole view of one status."""
    parts: list[RenderableType] = [_title(status)]
    if width >= 40:
        parts.append(_bar(status))
    pools, facts_table = _pools(status, is_wide=width >= WIDE), _facts(status)
    if width < SIDE_BY_SIDE:
        return Group(*parts, pools, Text(), facts_table)
    both = Table.grid(padding=(0, 3, 0, 0))
    both.add_column(no_wrap=True)
    both.add_column(ratio=1)
    both.add_row(pools, facts_table)
    return Group(*parts, both)


def _title(status: Status) -> Text:
    max_steps = status.get("max_steps", "?")
    step = status["slots"]["version"] if "slots" in status else 0
    text = Text.assemble((str(status["run"]), "bold"), f"  {status['state']}  step {step} of {max_steps}")
    if "elapsed_s" in status:
        text.append(f"  {clock_text(status['elapsed_s'])} so far")
    if status.get("left_s") is not None:
        text.append(f", about {clock_text(status['left_s'])} left", style="bold")
    return text


def _bar(status: Status) -> RenderableType:
    done = status["slots"]["version"] if "slots" in status else 0
    bar = ProgressBar(total=status.get("max_steps") or 1, completed=done)
    return Padding(bar, (0, 0, 1, 0))  # a bar alone does not end its line


# -- pools and queues -----------------------------------------------------------------------------------------


def _pools(status: Status, *, is_wide: bool) -> Table:
    """A row for each pool; what waits for it is on its right, or below where the terminal is narrow."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("pool", style="bold", no_wrap=True)
    table.add_column("workers")
    table.add_column("tok/s", justify="right", no_wrap=True)
    table.add_column("busy", justify="right", no_wrap=True)
    table.add_column("queue", no_wrap=True)
    if is_wide:
        table.add_column("a slot waits", justify="right", no_wrap=True)
        table.add_column("holds others up", justify="right", no_wrap=True)
    rates, flow = status.get("rates") or {}, status.get("flow") or {}
    for role in sorted(status["pools"], key=_place):
        pool = status["pools"][role]
        rate, busy = rates.get(role), flow.get("busy", {}).get(role)
        cells = [
            role,
            _states(pool),
            "-" if rate is None else f"{rate:,.0f}",
            "-" if busy is None else percent(busy),
            _queue(status, role),
        ]
        if is_wide:
            wait, held_up = flow.get("wait", {}).get(role), flow.get("backpressure", {}).get(role)
            cells += ["-" if wait is None else seconds(wait), "-" if held_up is None else percent(held_up)]
        table.add_row(*cells)
    return table


def _place(role: str) -> tuple[bool, bool, bool]:
    """Roles in the order of the data: rollout, teachers, reference, learner."""
    return role == "learner", role == "reference", role != "rollout"


def _states(pool: Mapping[str, Any]) -> Text:
    """Workers by state of health, healthy ones first: `2 healthy, 1 restarting`."""
    counts: dict[str, int] = {}
    for worker in pool["workers"]:
        counts[worker["state"]] = counts.get(worker["state"], 0) + 1
    counts.pop("retired", None)
    ordered = sorted(counts, key=lambda state: state != "healthy")
    text = Text(", ").join(Text(f"{counts[state]} {state}", style=COLOURS.get(state, "")) for state in ordered)
    if pool["wanted"] > sum(counts.values()):
        text.append(f" of {pool['wanted']}")
    return text if text.plain else Text(f"0 of {pool.get('planned', pool['wanted'])}")


def _queue(status: Status, role: str) -> str:
    """What waits for a pool, and how much may."""
    if "queues" not in status:
        return "-"
    queues, slots = status["queues"], status["slots"]
    if role == "rollout":
        return f"{queues['in_flight']} of {slots['window']} in flight"
    if role == "learner":
        return f"{queues['scored']} scored, batch {slots['batch_size']}"
    return f"{queues['to_score'].get(role, 0)} of {queues.get('capacity', '?')}"


# -- facts ----------------------------------------------------------------------------------------------------


def _facts(status: Status) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, fact in facts(status):
        table.add_row(name, Text(fact))
    return table


def facts(status: Status) -> Iterator[tuple[str, str]]:
    """Everything besides the pools, as (name, text) pairs."""
    if status.get("waiting"):
        waiting = status["waiting"]
        yield "start", f"{waiting['phase']}: waiting for {waiting['text']} since {clock_text(waiting['seconds'])}"
    if status.get("metrics"):
        yield "learner", learner_line(status["metrics"])
    if "slots" in status:
        yield "weights", _weights(status)
    if status.get("waits"):
        yield "waits", _waits(status)
    yield from _evaluations(status)
    if "health" in status:
        yield "health", _health(status["health"])
        if status["health"]["newest"]:
            age = clock_text(status["health"]["newest_age_s"])
            yield "newest", f"{status['health']['newest']} ({age} ago)"
    if status.get("balanced"):
        yield "balance", str(status["balanced"])
    if status.get("advice"):
        yield "limit", status["advice"]["text"]


def step_line(row: Mapping[str, Any], max_steps: int) -> str:
    """One line for one step, for logs and pipes."""
    return "  ".join([f"step {row['step']}/{max_steps}", *_texts(row, (metric.line for metric in METRICS))])


def learner_line(metrics: Mapping[str, Any]) -> str:
    """The learner's metrics of one step in a line."""
    shown = (metric for metric in METRICS if metrics.get(metric.key) or not metric.hidden_at_zero)
    return ", ".join(_texts(metrics, (metric.live for metric in shown)))


def _texts(row: Mapping[str, Any], templates: Iterable[str]) -> Iterator[str]:
    """The formats, filled in; those whose numbers the row lacks are left out."""
    for template in templates:
        if template and keys_in(template) <= row.keys():
            yield template.format_map(row)


def _weights(status: Status) -> str:
    workers = status["pools"].get("rollout", {"workers": []})["workers"]
    versions = [worker["version"] for worker in workers if worker["version"] is not None]
    text = f"version {status['slots']['version']}"
    if versions:
        low, high = min(versions), max(versions)
        text += f", engines at {low}" if low == high else f", engines at {low} to {high}"
    if "staleness" in status:
        staleness = status["staleness"]
        text += f"; staleness mean {staleness['mean']:.2f}, max {staleness['max']:.0f} of {staleness['bound']}"
    return text


def _waits(status: Status) -> str:
    waits = status["waits"]
    text = (
        f"the learner waited {waits['rollout_wait_s']:.1f} s for rollouts and {waits['score_wait_s']:.1f} s for "
        f"scores in the last {waits['steps']} steps"
    )
    since = status.get("since_step_s")
    return text if since is None else f"{text}; last step {clock_text(since)} ago"


def _evaluations(status: Status) -> Iterator[tuple[str, str]]:
    done = [
        f"{row['model'].replace('_', ' ')} {accuracy_text(row)} on {row['benchmark']} (step {row['step']})"
        for row in status.get("evaluations", ())
    ]
    running = [
        f"{each['model'].replace('_', ' ')} at step {each['step']} is being evaluated since "
        f"{clock_text(each['seconds'])}{_graded(status.get('evaluation'), each['model'])}"
        for each in status.get("evaluating", ())
    ]
    if done or running:
        yield "accuracy", "; ".join([*running, *done])


def _graded(evaluation: Mapping[str, Any] | None, model: str) -> str:
    """How far it is, where the run tells."""
    if not evaluation or evaluation.get("model") != model or "graded" not in evaluation:
        return ""
    return f" ({evaluation['graded']:,} of {evaluation['problems']:,} problems)"


def accuracy_text(row: Mapping[str, Any]) -> str:
    """An evaluation in short: `0.531 (avg@8)`."""
    return f"{row['avg_at_k']:.3f} (avg@{row['k']})"


def _health(health: Mapping[str, Any]) -> str:
    """Deaths, restarts and suspects lately, and since the start."""
    minutes = f"{health['recent_s'] / 60:.0f} min"
    parts = []
    for kind in ("deaths", "restarts", "suspects", "given_up"):
        total = health["total"].get(kind, {})
        recent = health["recent"].get(kind, {})
        if total:
            roles = ", ".join(f"{role} {number}" for role, number in total.items())
            parts.append(
                f"{kind.replace('_', ' ')} {sum(total.values())} ({roles}; {sum(recent.values())} recent)"
            )
    return f"{', '.join(parts)} (recent: last {minutes})" if parts else "no deaths, restarts or suspects"


def seconds(value: float) -> str:
    """Seconds with as many digits as are of use: `0.12 s`, `75 s`."""
    return f"{value:.3g} s" if value < 10 else f"{value:.0f} s"
