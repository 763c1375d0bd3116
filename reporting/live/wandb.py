"""Weights & Biases, when asked for: the run's side. Whatever wandb does, the training continues.

Rows go through a queue and a thread to a process of their own (`wandb_process.py`): a row that finds the queue
full is dropped and counted, and a process that hangs at the end is ended after `logging.wandb_timeout_s`.
"""

import importlib.util
import json
import logging
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting.live.event_words import evaluation_scalars
from settings.run import LoggingConfig

logger = logging.getLogger(__name__)

MAX_QUEUED = 10_000

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from reporting.live.wandb_process import main; main()"


def check_wandb(config: LoggingConfig) -> None:
    """ValueError if Weights & Biases is asked for, and its package is not installed."""
    if not is_wanted(config):
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder called wandb is no package
        raise ValueError(
            "logging.wandb_project: the package wandb is not installed; install it (pip install "
            "'poweropd[wandb]') or leave the setting out"
        )


def is_wanted(config: LoggingConfig) -> bool:
    """Whether anything goes to Weights & Biases."""
    return config.wandb_project is not None and config.wandb_mode != "disabled"


def run_id(folder: Path, run_name: str) -> str:
    """The id of the run at Weights & Biases: made once, and kept in the run's folder for when it is resumed."""
    file = folder / "wandb_id"
    if not file.is_file():
        file.write_text(f"{run_name}-{secrets.token_hex(4)}\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


class WandbWriter:
    """Sends what a run tells. Nothing here waits for wandb, but `close`, which has a limit."""

    def __init__(
        self,
        config: LoggingConfig,
        *,
        folder: Path,
        run_name: str,
        settings: Mapping[str, Any],
        command: Sequence[str] = (sys.executable, "-c", PROGRAM),
    ) -> None:
        """`folder` is the run's; wandb writes below `folder/wandb`. `settings` is shown as the configuration."""
        self._timeout_s = config.wandb_timeout_s
        self._log_path = folder / "wandb" / "poweropd.log"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        self._lines: queue.Queue[bytes | None] = queue.Queue(MAX_QUEUED)
        self._num_dropped = 0
        self._has_ended = False
        init = {
            **{"project": config.wandb_project, "entity": config.wandb_entity, "group": config.wandb_group},
            **{"tags": list(config.wandb_tags), "mode": config.wandb_mode, "name": run_name},
            **{"dir": str(folder), "id": run_id(folder, run_name), "resume": "allow", "config": dict(settings)},
        }
        self._put({"init": init, "timeout_s": self._timeout_s})
        self._sender = threading.Thread(target=self._send, name="wandb", daemon=True)
        self._sender.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a metrics row."""
        self._put({"log": {key: value for key, value in row.items() if isinstance(value, int | float)}})

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of an evaluation, as `eval/BENCHMARK/avg_at_8`."""
        self._put({"log": {"step": row["step"], **evaluation_scalars(row)}})

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Send the summary of the run."""
        self._put({"summary": dict(summary)})

    def close(self, *, has_failed: bool = False) -> None:
        """Let wandb finish, for so long as it may take; then end it."""
        self._put({"finish": int(has_failed)})
        try:
            self._lines.put(None, timeout=self._timeout_s)
            code = self._process.wait(timeout=self._timeout_s)
        except (queue.Full, subprocess.TimeoutExpired):
            self._report(f"did not finish within {self._timeout_s:g} s and is ended")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        else:
            if code:
                self._report(f"has ended with exit code {code}")
        if self._num_dropped:
            logger.error("Weights & Biases: %d rows were dropped", self._num_dropped)

    def _put(self, message: Mapping[str, Any]) -> None:
        try:
            self._lines.put_nowait(json.dumps(message).encode() + b"\n")
        except queue.Full:
            self._num_dropped += 1

    def _send(self) -> None:
        """Hand lines to the process until the last one, or until it has gone; then drop them."""
        stdin = self._process.stdin
        assert stdin is not None
        while (line := self._lines.get()) is not None:
            try:
                if not self._has_ended:
                    stdin.write(line)
                    stdin.flush()
            except OSError:
                self._report("does not take rows any more")
        if not self._has_ended:
            stdin.close()

    def _report(self, what: str) -> None:
        """Say once that it is broken."""
        if self._has_ended:
            return
        self._has_ended = True
        said = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        logger.error(
            "Weights & Biases %s: %s (%s); the run continues without it",
            *(what, self._log_path, said[-1] if said else "it said nothing"),
        )
