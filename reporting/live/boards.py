"""All dashboards of a run in one place: they are told of steps, evaluations and events, and follow its status.

How much space the disks have left that the run writes to is read here too.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from records.events import Events, reason_of
from records.files import space
from records.run_folder import RunFolder
from reporting.live.monitor import Monitor
from reporting.live.progress import ProgressView
from reporting.live.prometheus import Prometheus
from reporting.live.wandb import WandbWriter, is_wanted
from settings.load import to_yaml
from settings.run import RunConfig

if TYPE_CHECKING:
    from reporting.live.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

EVERY_S = 15.0
"""Free space is read so often."""


class Board(Protocol):
    """Shows steps and evaluations."""

    def step(self, row: Mapping[str, Any], /) -> None:
        """Show a metrics row."""
        ...

    def evaluation(self, row: Mapping[str, Any], /) -> None:
        """Show a row of `eval.jsonl`."""
        ...


class Listener(Board, Protocol):
    """Shows events too."""

    def event(self, event: Mapping[str, Any], /) -> None:
        """Show an event."""
        ...


class Dashboards:
    """Terminal, TensorBoard, Prometheus and Weights & Biases of one run. Ray must be connected for Prometheus.

    >>> async with remote_control(..., monitor=boards.monitor) as control, boards.following(control.status):
    ...     pipeline.on_step(boards.step)
    """

    def __init__(self, config: RunConfig, folder: RunFolder, events: Events) -> None:
        """Evaluations and events are taken from the folder's and `events`' own hooks."""
        self.view = ProgressView(config)
        self.monitor = Monitor(config, evaluations=folder.evaluation_rows())
        self._prometheus = _prometheus(config)
        self._tensorboard = _tensorboard(config, folder)
        self._wandb = _wandb(config, folder)
        self._disks = DiskWatch(written_folders(config, folder))
        parts = (self.monitor, self._prometheus, self._tensorboard)
        self._listeners: list[Listener] = [part for part in parts if part is not None]
        boards = (*self._listeners, self.view, self._wandb)
        self._boards: list[Board] = [board for board in boards if board is not None]
        self._events = events
        folder.on_evaluation(self.evaluation)
        events.on_event(self.event)

    @asynccontextmanager
    async def following(self, status: Callable[[], Mapping[str, Any]]) -> AsyncIterator[None]:
        """Show the status meanwhile, on the terminal and to Prometheus."""

        def told() -> Mapping[str, Any]:
            content = status()
            if self._prometheus is not None:
                self._prometheus.status({**content, "disk": self._disks.spaces})
            return content

        watching = asyncio.create_task(self._disks.run())
        try:
            async with self.view.following(told):
                yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    def step(self, row: Mapping[str, Any]) -> None:
        """Tell all of a trained step: a metrics row."""
        for board in [*self._boards]:
            self._tell(board, board.step, row)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Tell all of an evaluation: a row of `eval.jsonl`."""
        for board in [*self._boards]:
            self._tell(board, board.evaluation, row)

    def event(self, event: Mapping[str, Any]) -> None:
        """Tell those that show events."""
        for listener in [*self._listeners]:
            self._tell(listener, listener.event, event)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Tell of the end in numbers."""
        if self._wandb is not None:
            self._tell(self._wandb, self._wandb.summary, summary)

    def _tell(self, board: Board, tell: Callable[[Mapping[str, Any]], object], row: Mapping[str, Any]) -> None:
        """Tell one; a dashboard that fails is switched off, and the run continues."""
        try:
            tell(row)
        except Exception as error:
            self._boards = [each for each in self._boards if each is not board]
            self._listeners = [each for each in self._listeners if each is not board]
            name = type(board).__name__
            logger.error("%s has failed, the run continues without it", name, exc_info=error)
            self._events.add("dashboard_failed", dashboard=name, reason=reason_of(error))

    async def close(self, *, has_failed: bool = False) -> None:
        """Flush and close; waits for Weights & Biases alone, and that has a limit."""
        self._boards.clear()
        self._listeners.clear()
        try:
            if self._prometheus is not None and not has_failed:
                self._prometheus.ended()
            if self._tensorboard is not None:
                self._tensorboard.close()
            if self._wandb is not None:
                await asyncio.to_thread(self._wandb.close, has_failed=has_failed)
        except Exception as error:
            logger.error("a dashboard could not be closed", exc_info=error)


def _tensorboard(config: RunConfig, folder: RunFolder) -> "TensorBoard | None":
    if not config.logging.tensorboard:
        return None
    from reporting.live.tensorboard import TensorBoard

    board = TensorBoard(folder.tensorboard)
    board.configuration(to_yaml(config), config.model_dump(mode="json", exclude_defaults=True))
    return board


def _prometheus(config: RunConfig) -> Prometheus | None:
    return Prometheus(config.run_name) if config.logging.prometheus else None


def _wandb(config: RunConfig, folder: RunFolder) -> WandbWriter | None:
    if not is_wanted(config.logging):
        return None
    settings = config.model_dump(mode="json")
    return WandbWriter(config.logging, folder=folder.path, run_name=config.run_name, settings=settings)


class DiskWatch:
    """Holds the newest reading of every folder. A disk is asked in a thread: one behind a network may hang.

    >>> watch.spaces
    {'run': {'free': 52428800, 'size': 1073741824}}
    """

    def __init__(self, folders: Mapping[str, Path], *, read: Callable[[Path], dict[str, int]] = space) -> None:
        self._folders = folders
        self._read = read
        self.spaces: dict[str, dict[str, int]] = {}

    async def run(self) -> None:
        """Read for ever."""
        while True:
            await self.read()
            await asyncio.sleep(EVERY_S)

    async def read(self) -> None:
        """Read every folder; one that cannot be read has no reading then."""
        for name, path in self._folders.items():
            try:
                self.spaces[name] = await asyncio.to_thread(self._read, path)
            except OSError as error:
                self.spaces.pop(name, None)
                logger.warning("the free space of %s cannot be read: %s", path, error)


def written_folders(config: RunConfig, folder: RunFolder) -> dict[str, Path]:
    """The folders of a run that grow: its own, and that of its checkpoints where it is another one."""
    checkpoints = config.checkpoint.path
    if checkpoints is None or config.checkpoint.url is not None:
        return {"run": folder.path}
    return {"run": folder.path, "checkpoints": Path(checkpoints)}
