"""What a person sees of a run in progress: a live view on a terminal, plain lines otherwise.

The live view shows the status of the run (`RemoteControl.status`), which is asked for again and again: a long step
or a slow start moves it too. Plain lines come with every step, evaluation and phase of the start.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from reporting.advisor import RECENT_STEPS, advise
from reporting.live.monitor import clock_text
from reporting.live.terminal import LiveView, accuracy_text, step_line
from settings.run import RunConfig

logger = logging.getLogger(__name__)

REFRESH_S = 0.5
"""The status is asked for so often."""


class ProgressView:
    """Shows a run in progress.

    >>> async with view.following(controller.status):
    ...     view.say("run folder runs/first")
    """

    def __init__(self, config: RunConfig, *, console: Console | None = None) -> None:
        self._console = console or Console()
        wanted = config.logging.display
        self._is_live = wanted == "live" or (wanted == "auto" and self._console.is_terminal)
        self._max_steps = config.max_steps
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._phase = ""
        self._left_s: float | None = None
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    @asynccontextmanager
    async def following(self, status: Callable[[], Mapping[str, Any]]) -> AsyncIterator[None]:
        """Show what `status` says meanwhile, about twice a second."""
        if self._is_live:
            self._live.start()
        polling = asyncio.create_task(self._poll(status))
        polling.add_done_callback(_log_failure)
        try:
            yield
        finally:
            has_failed = polling.done()
            polling.cancel()
            await asyncio.wait({polling})
            if self._is_live:
                if not has_failed:
                    await self._show_last(status)
                self._live.stop()

    async def _poll(self, status: Callable[[], Mapping[str, Any]]) -> None:
        while True:
            self.show(status())
            await asyncio.sleep(REFRESH_S)

    async def _show_last(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Leave the view as the run has ended."""

        async def show() -> None:
            self.show(status())

        showing = asyncio.create_task(show())
        showing.add_done_callback(_log_failure)
        await asyncio.wait({showing})

    def show(self, status: Mapping[str, Any]) -> None:
        """Show a status: the live view, or a line where the start has come to its next phase."""
        self._left_s = status.get("left_s")
        if self._is_live:
            self._live.update(LiveView(status), refresh=True)
            return
        waiting = status.get("waiting")
        if waiting and waiting["phase"] != self._phase:
            self._phase = waiting["phase"]
            self.say(f"{waiting['phase']}: waiting for {waiting['text']}")

    def say(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, row: Mapping[str, Any]) -> None:
        """Tell of a trained step: a metrics row."""
        self._recent.append(row)
        if not self._is_live:
            left = "" if self._left_s is None else f"  left {clock_text(self._left_s)}"
            advice = advise([*self._recent])
            limit = "" if advice is None else f"  {advice.short}"
            self.say(step_line(row, self._max_steps) + limit + left)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Tell of an evaluation: a row of `eval.jsonl`."""
        if not self._is_live:
            model = str(row["model"]).replace("_", " ")
            self.say(f"evaluation of {model} at step {row['step']} on {row['benchmark']}: {accuracy_text(row)}")


def _log_failure(polling: asyncio.Task[None]) -> None:
    """A view that fails must not end the run."""
    if not polling.cancelled() and polling.exception() is not None:
        logger.error("the live view has ended, the run continues", exc_info=polling.exception())
