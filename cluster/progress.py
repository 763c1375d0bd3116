"""What a person sees while a run goes on: a live view on a terminal, one plain line per step otherwise."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cluster.advisor import RECENT_STEPS, Advice, advise
from cluster.config import RunConfig
from cluster.flow_summary import flow_line, flow_means

logger = logging.getLogger(__name__)


class ProgressView:
    """Shows steps as they are trained. Use as a context manager."""

    def __init__(self, config: RunConfig) -> None:
        self._console = Console()
        wanted = config.logging.display
        self._is_live = wanted == "live" or (wanted == "auto" and self._console.is_terminal)
        self._max_steps = config.max_steps
        self._max_staleness = config.max_staleness
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(config.run_name, total=config.max_steps)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "ProgressView":
        if self._is_live:
            self._live.start()
            self._live.update(Group(self._bar))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, row: Mapping[str, Any]) -> None:
        """Show one trained step: a metrics row."""
        self._recent.append(row)
        advice = advise([*self._recent])
        if self._is_live:
            self._bar.update(self._task, completed=row["step"])
            self._live.update(Group(self._bar, self._table(row, advice)))
        else:
            self.say(plain_line(row, self._max_steps, advice))

    def _table(self, row: Mapping[str, Any], advice: Advice | None) -> Table:
        table = Table.grid(padding=(0, 3))
        for role in ("rollout", "teacher", "reference"):
            if f"workers/{role}" in row:
                workers, rate = row[f"workers/{role}"], row[f"throughput/{role}"]
                table.add_row(f"[bold]{role}", f"{workers} workers", f"{rate:,.0f} tok/s")
        table.add_row(
            "[bold]learner", f"version {row['weight_version']}", f"{row['throughput/learner']:,.0f} tok/s"
        )
        waits = f"waits: rollouts {row['time/rollout_wait_s']:.2f} s, scores {row['time/score_wait_s']:.2f} s"
        table.add_row("[bold]queues", f"{row['queue/rollouts']} to score, {row['queue/scored']} to train", waits)
        flow = flow_means([row])
        if flow:
            table.add_row("[bold]flow", flow_line(flow), "")
        staleness = f"mean {row['staleness/mean']:.2f}, max {row['staleness/max']:.0f} of {self._max_staleness}"
        table.add_row("[bold]staleness", staleness, "")
        signal = f"{row['reward/mean']:+.4f}   reverse KL {row['kl/reverse']:.4f}"
        table.add_row("[bold]reward", signal, f"gradient norm {row['grad_norm']:.3g}")
        length = f"length {row['response_length/mean']:.0f}, truncated {row['truncated_frac']:.1%}"
        table.add_row("[bold]responses", length, "")
        if advice is not None:
            table.add_row("[bold]limit", advice.text, "")
        return table


def plain_line(row: Mapping[str, Any], max_steps: int, advice: Advice | None = None) -> str:
    """One line for one step, for logs and pipes."""
    return (
        f"step {row['step']}/{max_steps}  reward {row['reward/mean']:+.4f}  kl/reverse {row['kl/reverse']:.4f}  "
        f"loss {row['loss']:+.5f}  grad {row['grad_norm']:.3g}  "
        f"staleness {row['staleness/mean']:.2f}/{row['staleness/max']:.0f}  "
        f"length {row['response_length/mean']:.0f}  tok/s rollout {row['throughput/rollout']:,.0f} "
        f"teacher {row['throughput/teacher']:,.0f} learner {row['throughput/learner']:,.0f}  "
        f"waits {row['time/rollout_wait_s']:.2f}+{row['time/score_wait_s']:.2f} s  "
        f"train {row['time/train_s']:.2f} s  publish {row['time/publish_s']:.2f} s"
        + (f"  {advice.short}" if advice is not None else "")
    )
