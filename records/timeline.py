"""What every worker does when: spans of its stages in `timeline.jsonl`, for the timeline of a report.

{"worker": "rollout-0", "stage": "generate", "start": 1795257096.12, "end": 1795257097.4, "busy_s": 1.2, "num": 9}

Uses of one worker for one stage that overlap, follow each other at once, or fit into the resolution together are
one span: `num` of them, and `busy_s` seconds in which any was open. The resolution is doubled, for the whole file,
whenever it holds `max_spans`, so that a long run has a coarser timeline and not a larger one. A run that is
resumed continues the same file. Times are seconds since 1970.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.files import RowFile, is_disk_error, read_rows, replacing
from records.ownership import Ownership

logger = logging.getLogger(__name__)

MAX_SPANS = 20_000
RESOLUTION_S = 0.1
GAP_S = 0.005
"""Spans of a lane that are no further apart are always one."""
FLUSH_EVERY_S = 5.0
"""Spans that have ended are written so often, while others end."""
CUT_S = 60.0
"""A span that lasts longer is written in pieces, so that a crash loses little of it."""


@dataclass
class Span:
    """One stage of one worker; see the head of the file."""

    worker: str
    stage: str
    start: float
    end: float
    busy_s: float
    num: int = 1

    @property
    def lane(self) -> tuple[str, str]:
        """What may be merged with it: spans of the same worker and stage."""
        return self.worker, self.stage

    def absorbs(self, later: "Span", resolution_s: float) -> bool:
        """Take in a span of the same lane that began later, if both are to be one; says whether."""
        if later.start - self.end > GAP_S and later.end - self.start > resolution_s:
            return False
        self.end = max(self.end, later.end)
        self.busy_s += later.busy_s
        self.num += later.num
        return True

    def row(self) -> dict[str, Any]:
        """As written."""
        times = {"start": round(self.start, 4), "end": round(self.end, 4), "busy_s": round(self.busy_s, 4)}
        return {"worker": self.worker, "stage": self.stage, **times, "num": self.num}

    def copy(self) -> "Span":
        """One that may absorb others."""
        return Span(self.worker, self.stage, self.start, self.end, self.busy_s, self.num)


def read_spans(path: Path) -> list[Span]:
    """The spans of a file, in its order; rows that are no span are left out. Empty without the file."""
    return [span for row in read_rows(path) if (span := _span(row)) is not None]


def _span(row: dict[str, Any]) -> Span | None:
    match row:
        case {
            "worker": str(worker),
            "stage": str(stage),
            "start": int() | float() as start,
            "end": int() | float() as end,
            "busy_s": int() | float() as busy_s,
        }:
            num = row.get("num")
            return Span(worker, stage, start, end, busy_s, num if isinstance(num, int) else 1)
    return None


def merged(spans: Iterable[Span], resolution_s: float) -> list[Span]:
    """New spans by start, in which those of a lane that fit into `resolution_s` together are one."""
    found: list[Span] = []
    last: dict[tuple[str, str], Span] = {}
    for span in sorted(spans, key=lambda span: span.start):
        before = last.get(span.lane)
        if before is None or not before.absorbs(span, resolution_s):
            last[span.lane] = span.copy()
            found.append(last[span.lane])
    return found


class Timeline:
    """Notes who does what; without a file it notes nothing."""

    def __init__(
        self,
        path: Path | None = None,
        owner: Ownership | None = None,
        *,
        max_spans: int = MAX_SPANS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Spans that `path` holds already stay. `owner`: it is written to only while that holds the folder."""
        self._path = path
        self._owner = owner
        self._max_spans = max_spans
        self._clock = clock
        self._resolution_s = RESOLUTION_S
        self._going_on: dict[tuple[str, str], tuple[int, float]] = {}  # how many, and since when
        self._last: dict[tuple[str, str], Span] = {}  # ended, and may still grow
        self._ended: list[Span] = []  # not written yet
        self._num_written = 0 if path is None else len(read_spans(path))
        self._written_at = clock()
        self._rows = None if path is None else RowFile(path, max_kept=max_spans)

    @contextmanager
    def lasting(self, stage: str, *workers: str) -> Iterator[None]:
        """Note that these workers are in a stage meanwhile."""
        if self._rows is None:
            yield
            return
        for worker in workers:
            num, since = self._going_on.get((worker, stage), (0, self._clock()))
            self._going_on[worker, stage] = num + 1, since
        try:
            yield
        finally:
            for worker in workers:
                self._leave(worker, stage)

    def close(self) -> None:
        """Write what has not been written; what still lasts ends now."""
        for worker, stage in [*self._going_on]:
            self._end(worker, stage)
        self._ended += self._last.values()
        self._last.clear()
        self._write()

    def _leave(self, worker: str, stage: str) -> None:
        if (worker, stage) not in self._going_on:  # closed meanwhile
            return
        num, since = self._going_on[worker, stage]
        if num > 1:
            self._going_on[worker, stage] = num - 1, since
        else:
            self._end(worker, stage)

    def _end(self, worker: str, stage: str) -> None:
        _, since = self._going_on.pop((worker, stage))
        until = self._clock()
        span = Span(worker, stage, since, until, until - since)
        last = self._last.get(span.lane)
        if last is not None and last.absorbs(span, self._resolution_s):
            return
        if last is not None:
            self._ended.append(last)
        self._last[span.lane] = span
        if until - self._written_at >= FLUSH_EVERY_S:
            self._write()

    def _cut(self, now: float) -> None:
        """Take pieces of long spans to be written; they are merged again when the file gets coarser."""
        for lane, (num, since) in self._going_on.items():
            if now - since >= CUT_S:
                self._ended += [*filter(None, [self._last.pop(lane, None)]), Span(*lane, since, now, now - since)]
                self._going_on[lane] = num, now
        for lane in [lane for lane, span in self._last.items() if now - span.start >= CUT_S]:
            self._ended.append(self._last.pop(lane))

    def _write(self) -> None:
        self._written_at = self._clock()
        self._cut(self._written_at)
        spans, self._ended = self._ended, []
        if self._rows is None or (self._owner is not None and not self._owner.is_held):
            return
        for span in spans:
            self._rows.append(span.row())
        self._num_written += len(spans)
        if self._num_written > self._max_spans:
            self._coarsen(self._rows.path)

    def _coarsen(self, path: Path) -> None:
        """Merge the spans of the file until it holds at most half of what it may."""
        spans = read_spans(path)
        while len(spans) > self._max_spans // 2:
            lanes = len({span.lane for span in spans})
            if lanes >= len(spans):
                break
            self._resolution_s *= 2
            spans = merged(spans, self._resolution_s)
        try:
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(span.row()) + "\n" for span in spans), encoding="utf-8")
        except OSError as error:
            if not is_disk_error(error):
                raise
            logger.warning("%s: %s; its timeline is not made coarser yet", path, error.strerror)
            return
        self._num_written = len(spans)
