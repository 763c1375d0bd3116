"""Plans a comparison: objectives times seeds become runs of `launch.py train`, all checked before the first.

objectives: [{label: log_ratio, settings: {objective.name: log_ratio}}], seeds: [0, 1]
-> runs log_ratio-seed0 and log_ratio-seed1, equal in everything but objective and seed
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from commands.checks import load_checked
from records.files import read_json
from records.run_folder import RunFolder
from settings.engine import NonNegative, Section
from settings.run import RunConfig
from settings.run_files import load_config

OWN_KEYS = {"run_name", "runs_path", "seed"}
"""Settings that the comparison gives to each run itself."""

SHARED_KEYS = {"max_steps", "batch_size", "num_samples_per_prompt", "data", "evaluation"}
"""Settings, or whole sections, that make up task and budget: equal for all objectives."""

FREE_SECTIONS = {"cluster", "logging", "checkpoint"}
"""Sections that may change between a run and its continuation: they do not enter its numbers."""


ATTEMPTS = "attempts.jsonl"
"""In the folder of the runs: a row for every time that a run was started."""


class ComparedObjective(Section):
    """One line of the comparison."""

    label: str = Field(min_length=1)
    """Name in table and figures; its runs are named after it."""
    settings: dict[str, Any] = Field(default={})
    """What sets it apart, by dotted key: `{objective.name: power, objective.alpha: 5}`."""


class CompareConfig(Section):
    """A comparison: the same task and budget, one objective at a time."""

    base: str
    """YAML file of the run configuration that every run starts from."""
    runs_path: str = "runs/compare"
    """Folder of the run folders; finished runs in it are kept, interrupted ones continued."""
    output_path: str = "runs/compare/results"
    """Folder of the table and the figures."""
    seeds: list[NonNegative] = Field(default=[0], min_length=1)
    """Every objective is trained once with each seed."""
    overrides: dict[str, Any] = Field(default={})
    """Settings of all runs by dotted key, over those of `base`: `{max_steps: 60}`."""
    metrics: list[str] = Field(default=[])
    """Further columns of the table: means over all steps of these keys of `metrics.jsonl`."""
    objectives: list[ComparedObjective] = Field(min_length=1)
    """The objectives: a list of `{label, settings}`; `settings` come last."""

    @model_validator(mode="after")
    def _runs_are_distinct(self) -> Self:
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        labels: dict[str, str] = {}
        for objective in self.objectives:
            other = labels.setdefault(_folder_name(objective.label).lower(), objective.label)
            if other is not objective.label:
                raise ValueError(f"objectives: label {objective.label!r} is there twice, or as {other!r}")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run: its command-line options and the configuration that they resolve to."""

    label: str
    seed: int
    options: list[str]
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        """Where the run is, or will be."""
        return RunFolder(Path(self.config.runs_path) / self.config.run_name)

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary; empty without one."""
        return read_json(self.folder.summary) or {}

    @property
    def is_finished(self) -> bool:
        """All steps are trained and summed up."""
        return self.summary.get("steps") == self.config.max_steps


def plan_runs(config: CompareConfig) -> list[PlannedRun]:
    """Return all runs in order; ValueError naming the objective if any of them would be refused.

    The first seed of every objective comes before the second of any: a comparison cut short compares.
    """
    runs = [_plan(config, each, seed) for seed in config.seeds for each in config.objectives]
    for run in runs:
        _check_same_as_before(run)
    return runs


def describe(run: PlannedRun) -> str:
    """Where a run stands, in a word."""
    if run.is_finished:
        return "finished"
    return "to be continued" if run.folder.path.is_dir() else "new"


def _plan(config: CompareConfig, objective: ComparedObjective, seed: int) -> PlannedRun:
    shared, own = dict(_flat(config.overrides)), dict(_flat(objective.settings))
    for key in shared | own:
        if key in OWN_KEYS:
            raise ValueError(f"overrides: {key} is set by the comparison itself")
    for key in own:
        if SHARED_KEYS & {key, key.partition(".")[0]}:
            raise ValueError(f"{objective.label}: {key} must be the same for all objectives: set it in overrides")
    name = f"{_folder_name(objective.label)}-seed{seed}"
    given = shared | own | {"seed": seed, "runs_path": config.runs_path, "run_name": name}
    options = options_of(given)
    try:
        return PlannedRun(objective.label, seed, options, load_checked(config.base, options))
    except ValueError as error:
        raise ValueError(f"{objective.label}: {error}") from error


def _check_same_as_before(run: PlannedRun) -> None:
    """ValueError if the run's folder is there and was made with other settings."""
    path = run.folder.path / "config.yaml"
    if not path.is_file():
        return
    found = dict(_flat(load_config(str(path)).model_dump(mode="json")))
    wanted = dict(_flat(run.config.model_dump(mode="json")))
    for key in sorted(found | wanted):
        if key.partition(".")[0] not in FREE_SECTIONS and found.get(key) != wanted.get(key):
            raise ValueError(
                f"{run.label}: {run.folder.path} was made with {key} {found.get(key)!r}, now it is "
                f"{wanted.get(key)!r}; remove that folder or choose another runs_path"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of nested mappings; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}".replace("-", "_"), value


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings, dotted or nested, as command-line options."""
    return [f"--{key}={_text(value)}" for key, value in _flat(settings)]


def _text(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-._") or "objective"
