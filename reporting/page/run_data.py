"""Everything a report shows of a run, read from its folder. Files that are missing or damaged are left out."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from records.files import read_json, read_rows
from records.run_folder import RunFolder
from records.timeline import Span, read_spans
from settings.run import RunConfig
from settings.run_files import load_config

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """One run, as its files tell it."""

    name: str
    folder: RunFolder
    config: RunConfig | None
    """None if config.yaml is not there or not a configuration of this version."""
    config_text: str
    environment: Row
    rows: list[Row]
    """Metrics of the steps that count."""
    all_rows: list[Row]
    """Also of the steps that were rolled back, as they were written."""
    evaluations: list[Row]
    events: list[Row]
    spans: list[Span]
    samples: list[Row]
    summary: Row
    preflight: Any
    """Whatever `preflight.json` holds; None without it."""

    @property
    def start_s(self) -> float:
        """When the run began, in seconds since 1970; 0 if nothing tells."""
        return min(self._times, default=0.0)

    @property
    def end_s(self) -> float:
        """When it was last heard of."""
        return max(self._times, default=0.0)

    @property
    def _times(self) -> list[float]:
        times = [number(event, "time") for event in self.events] + [number(row, "time_s") for row in self.rows]
        return [time for time in times if time is not None]


def read_run(folder: RunFolder) -> RunData:
    """Read the files of a run, whether it has ended or not."""
    config_path = folder.path / "config.yaml"
    return RunData(
        name=folder.path.name,
        folder=folder,
        config=_config(config_path),
        config_text=config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else "",
        environment=_json(folder.path / "environment.json") or {},
        rows=folder.valid_metrics(),
        all_rows=folder.metric_rows(),
        evaluations=folder.evaluation_rows(),
        events=folder.event_rows(),
        spans=read_spans(folder.timeline),
        samples=read_rows(folder.samples),
        summary=_json(folder.summary) or {},
        preflight=_json(folder.path / "preflight.json"),
    )


def number(row: Mapping[str, Any], key: str) -> float | None:
    """The finite number under a key; None without one."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def numbers(rows: list[Row], key: str) -> list[float]:
    """The finite numbers under a key, of those rows that have one."""
    return [value for row in rows if (value := number(row, key)) is not None]


def total(rows: list[Row], key: str) -> float:
    """Their sum."""
    return sum(numbers(rows, key))


def mean(rows: list[Row], key: str) -> float | None:
    """Their mean; None without any."""
    values = numbers(rows, key)
    return sum(values) / len(values) if values else None


def _config(path: Path) -> RunConfig | None:
    if not path.is_file():
        return None
    try:
        return load_config(str(path))
    except ValueError as error:
        logger.warning("%s is shown as text only: %s", path, str(error).splitlines()[0])
        return None


def _json(path: Path) -> Row | None:
    try:
        return read_json(path)
    except ValueError as error:
        logger.warning("%s; it is left out", error)
        return None
