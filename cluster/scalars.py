"""Scalars for dashboards: TensorBoard always, Weights & Biases when asked for."""

import importlib
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.summary import Writer

from cluster.disk import is_disk_error
from cluster.logging_config import LoggingConfig

logger = logging.getLogger(__name__)

MAX_KEPT_ROWS = 1000
"""Rows kept for TensorBoard while the disk is full."""

PROBE_BYTES = 2**16
"""So much must fit on a disk that was full before TensorBoard's files are written again."""


class ScalarWriter:
    """Writes every number of a metrics row under its key."""

    def __init__(self, config: LoggingConfig, *, folder: Path, run_name: str) -> None:
        self._tensorboard = _TensorBoard(folder) if config.tensorboard else None
        self._wandb: Any = None
        if config.wandb_project is not None:
            wandb = importlib.import_module("wandb")
            self._wandb = wandb.init(project=config.wandb_project, name=run_name, id=run_name, resume="allow")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics row at its step."""
        step = row["step"]
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            self._tensorboard.write(step, numbers)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _TensorBoard:
    """TensorBoard's files. Rows that a full disk does not take are written later, to a new file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Writer | None = None
        self._kept: deque[tuple[int, dict[str, float]]] = deque(maxlen=MAX_KEPT_ROWS)
        self._is_late = False

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write a row, and those that were kept."""
        self._kept.append((step, numbers))
        try:
            self._write_kept()
        except OSError as error:
            if not is_disk_error(error):
                raise
            if not self._is_late:
                logger.warning("%s: %s; scalars are kept until there is space", self._folder, error.strerror)
            self._writer, self._is_late = None, True  # its thread has ended with the error

    def _probe(self) -> None:
        """OSError if the disk is still full; else its thread would find out, and print a traceback every time."""
        probe = self._folder / "probe.tmp"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _write_kept(self) -> None:
        if self._is_late:
            self._probe()
        if self._writer is None:
            self._writer = Writer(str(self._folder))
        for step, numbers in self._kept:
            for key, value in numbers.items():
                self._writer.add_scalar(key, value, step=step)
        self._writer.flush()
        self._kept.clear()
        if self._is_late:
            logger.warning("%s: scalars are written again", self._folder)
            self._is_late = False
