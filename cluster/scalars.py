"""Scalars for dashboards: TensorBoard always, Weights & Biases when asked for."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.summary import Writer

from cluster.config import LoggingConfig


class ScalarWriter:
    """Writes every number of a metrics row under its key."""

    def __init__(self, config: LoggingConfig, *, folder: Path, run_name: str) -> None:
        self._tensorboard = Writer(str(folder)) if config.tensorboard else None
        self._wandb: Any = None
        if config.wandb_project is not None:
            wandb = importlib.import_module("wandb")
            self._wandb = wandb.init(project=config.wandb_project, name=run_name, id=run_name, resume="allow")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics row at its step."""
        step = row["step"]
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step=step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
