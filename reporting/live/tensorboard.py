"""TensorBoard's files of a run: scalars of every step and evaluation, events as text, the configuration.

Entries that a full disk does not take are written later, to a new file.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from records.files import is_disk_error
from records.metrics import declared
from reporting.live.event_words import ROUTINE, evaluation_scalars, in_words

logger = logging.getLogger(__name__)

MAX_KEPT = 100_000
"""Entries kept while the disk is full."""

PROBE_BYTES = 2**16
"""So much must fit on a disk that was full before TensorBoard's files are written again."""


class TensorBoard:
    """Writes what a run tells under the keys of its own files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None
        self._kept: deque[Event] = deque(maxlen=MAX_KEPT)
        self._is_late = False
        self._step = 0
        self._lock = threading.RLock()  # late rows are told of from the thread of a checkpoint

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics row at its step."""
        self._step = int(row["step"])
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        self._add(self._step, *(scalar_pb(key, value, _description(key)) for key, value in numbers.items()))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of an evaluation at its step, as `eval/BENCHMARK/avg_at_8`."""
        self._add(row["step"], *(scalar_pb(key, value) for key, value in evaluation_scalars(row).items()))

    def event(self, event: Mapping[str, Any]) -> None:
        """Write an event in words at the newest step; those of every step are left out."""
        if event["event"] not in ROUTINE:
            self._add(self._step, text_pb("events", in_words(event)))

    def configuration(self, text: str, settings: Mapping[str, Any]) -> None:
        """Write the configuration: as text, and as hyperparameters those settings that are given."""
        self._add(0, text_pb("configuration", f"```yaml\n{text}\n```"), hparams_pb(dict(flat(settings))))

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, *summaries: Any) -> None:
        now = time.time()
        with self._lock:
            self._kept.extend(Event(wall_time=now, step=step, summary=summary) for summary in summaries)
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

    def _write_kept(self) -> None:
        if self._is_late:
            self._probe()
        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder))
        for event in self._kept:
            self._writer.add_event(event)
        self._writer.flush()
        self._kept.clear()
        if self._is_late:
            logger.warning("%s: scalars are written again", self._folder)
            self._is_late = False


def _description(key: str) -> str | None:
    """What TensorBoard says of a scalar."""
    metric = declared(key)
    return None if metric is None else metric.text


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Nested settings under dotted names; what is neither number nor text is JSON."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, bool | int | float | str) else json.dumps(value)
