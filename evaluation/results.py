"""The graded responses of an evaluation on disk: part files while it runs, then one Parquet file per benchmark.

FOLDER/settings.json               what was evaluated, and how: an evaluation continues with the same only
FOLDER/parts/000000.parquet ...    graded problems, whole, in the order in which they were finished
FOLDER/BENCHMARK.parquet           at the end: a row per response, by problem and sample; the parts are gone
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evaluation.metrics import RIGHT, GradedSample
from records.events import Events, reason_of
from records.files import is_disk_error, read_json, replacing, write_json
from records.run_folder import RunFolder

RESULT_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample", pa.int32()),  # 0 to n - 1, in the order of sampling
        ("problem", pa.string()),
        ("answer", pa.string()),  # the gold answer
        ("response", pa.string()),  # without special tokens
        ("extracted", pa.string()),  # the final answer of the response
        ("correct", pa.bool_()),
        ("verdict", pa.string()),  # right, wrong, timed out (in grading) or failed (to be compared)
        ("answer_class", pa.int32()),  # the first sample of the problem with an equal final answer
        ("num_tokens", pa.int32()),  # of the response, with its stop token
        ("finish_reason", pa.string()),  # `length`: truncated
        ("seed", pa.int64()),  # of this response's sampling
        ("weight_version", pa.int64()),
        ("response_token_ids", pa.list_(pa.int32())),
        ("behaviour_log_probs", pa.list_(pa.float32())),  # before temperature and truncation
    ]
)
"""A row per response, in `BENCHMARK.parquet`."""

PART_SCHEMA = pa.schema([("benchmark", pa.string()), ("slot", pa.int64()), *RESULT_SCHEMA])
"""Of part files: `slot` is the place of the problem among those of all benchmarks."""


logger = logging.getLogger(__name__)

TEXTS = ("benchmark", "problem_id", "problem", "answer")
"""Columns that tell the problem."""


@dataclass(frozen=True)
class EvaluatedProblem:
    """A problem of a benchmark, as text."""

    benchmark: str
    problem_id: str
    problem: str
    answer: str


def result_table(
    rollouts: pa.Table,
    problems: Sequence[EvaluatedProblem],
    texts: Sequence[str],
    judged: Mapping[str, Sequence[Any]],
) -> pa.Table:
    """Graded rows of rollouts: with the problem and text of each, and what is `judged` of it.

    That is `extracted`, `verdict` and `answer_class`.
    """
    versions = [runs[-1]["version"] for runs in rollouts.column("weight_versions").to_pylist()]
    columns: dict[str, Any] = {
        name: rollouts.column(name)
        for name in ("slot", "sample", "finish_reason", "seed", "response_token_ids", "behaviour_log_probs")
    }
    columns |= {name: [getattr(problem, name) for problem in problems] for name in TEXTS}
    columns |= {"response": texts, "weight_version": versions, **judged}
    columns["correct"] = [verdict == RIGHT for verdict in judged["verdict"]]
    columns["num_tokens"] = pc.list_value_length(rollouts.column("response_token_ids"))  # pyright: ignore[reportAttributeAccessIssue]
    arrays = [_column(columns[field.name], field.type) for field in PART_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=PART_SCHEMA)


def _column(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def samples_of(table: pa.Table) -> dict[int, list[GradedSample]]:
    """The graded responses of a table by slot, in the order of sampling."""
    names = ["slot", "sample", "verdict", "answer_class", "num_tokens", "finish_reason"]
    found: dict[int, list[GradedSample]] = {}
    for row in table.select(names).to_pylist():
        sample = GradedSample(
            row["sample"], row["verdict"], row["answer_class"], row["num_tokens"], row["finish_reason"] == "length"
        )
        found.setdefault(row["slot"], []).append(sample)
    return {slot: sorted(samples, key=lambda each: each.sample) for slot, samples in found.items()}


class ResultFolder:
    """The folder of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = path / "summary.json"
        self._parts = path / "parts"
        self._settings = path / "settings.json"
        self._num_parts = 0

    def begin(self) -> None:
        """Begin anew: what an earlier evaluation has left is removed."""
        self.discard()
        self._parts.mkdir(parents=True)

    def discard(self) -> None:
        """Remove the folder."""
        if self.path.is_dir():
            shutil.rmtree(self.path)

    def check(self, settings: Mapping[str, Any]) -> None:
        """ValueError unless an evaluation with these settings may begin or continue here; nothing is written.

        It names the first setting that differs if the folder holds an evaluation with others.
        """
        if self._settings.is_file():
            self._check_settings(settings)
        elif self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise ValueError(f"--out: {self.path} is not an empty folder, and holds no evaluation")

    def resume(self, settings: Mapping[str, Any]) -> dict[int, list[GradedSample]]:
        """Begin, or continue; returns what is graded already, by slot. ValueError as `check` says."""
        self.check(settings)
        self._parts.mkdir(parents=True, exist_ok=True)
        write_json(self._settings, settings)
        for torn in self._parts.glob("*.tmp"):
            torn.unlink()
        paths = self._part_paths()
        self._num_parts = 1 + max((int(path.stem) for path in paths), default=-1)
        graded: dict[int, list[GradedSample]] = {}
        for path in paths:
            try:
                graded |= samples_of(pq.ParquetFile(path).read())
            except (KeyError, OSError, TypeError, ValueError, pa.ArrowException) as error:
                logger.warning("%s is damaged, its problems are evaluated anew: %s", path, error)
                path.rename(path.with_suffix(".damaged"))
        return graded

    @property
    def is_finished(self) -> bool:
        """Whether the evaluation has ended and its results are complete."""
        return self.summary.is_file()

    def finished_summary(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The summary of a finished evaluation; ValueError naming the setting if it was made with others."""
        self._check_settings(settings)
        return read_json(self.summary) or {}

    def keep(self, table: pa.Table) -> None:
        """Write graded problems as the next part."""
        _write_table(self._parts / f"{self._num_parts:06d}.parquet", table)
        self._num_parts += 1

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Put the parts together, one file per benchmark, and write the summary if there is one."""
        tables = [pq.ParquetFile(path).read() for path in self._part_paths()]
        if tables:
            for name, table in _by_benchmark(pa.concat_tables(tables)):
                _write_table(self.path / f"{name}.parquet", table)
        if summary is not None:
            write_json(self.summary, summary)
        shutil.rmtree(self._parts)

    def _part_paths(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(settings))
        before = {"grader": "strict"} if "grader" in now else {}  # before there was a choice
        before |= read_json(self._settings) or {}
        differing = next((key for key in {**before, **now} if before.get(key) != now.get(key)), None)
        if differing is not None:
            raise ValueError(
                f"--out: {self.path} holds an evaluation with {differing} {before.get(differing)!r}, and not "
                f"{now.get(differing)!r}; choose another folder, or the same settings to continue it"
            )


def _by_benchmark(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each benchmark, in the order of its problems and samples."""
    ordered = table.sort_by([("slot", "ascending"), ("sample", "ascending")])
    for name in pc.unique(ordered.column("benchmark")).to_pylist():  # pyright: ignore[reportAttributeAccessIssue]
        rows = ordered.filter(pc.equal(ordered.column("benchmark"), name))  # pyright: ignore[reportAttributeAccessIssue]
        yield name, rows.select(RESULT_SCHEMA.names)


def _write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


class KeptResults:
    """The results of one evaluation in a run's folder: `evaluations/step_N/BENCHMARK.parquet`.

    A full disk costs them, with an event, and not the run.
    """

    def __init__(self, folder: RunFolder, name: str, events: Events) -> None:
        """`name` is `step_N` for the student, a teacher's role for a teacher."""
        self._folder = folder
        self._name = name
        self._results = ResultFolder(folder.evaluation_results / name)
        self._events = events
        self._is_lost = False
        self._lock = threading.Lock()  # `keep` comes from a thread, which may outlive its evaluation

    def begin(self) -> None:
        """Begin anew: what an abandoned evaluation has left is removed."""
        self._attempt(self._results.begin)

    def keep(self, table: pa.Table) -> None:
        """Write graded problems."""
        self._attempt(lambda: self._results.keep(table))

    def finish(self) -> None:
        """Put everything together."""
        self._attempt(self._results.finish)

    def discard(self) -> None:
        """Remove what was kept of an evaluation that came to no end, and take nothing more."""

        def remove() -> None:
            self._is_lost = True
            self._results.discard()

        self._attempt(remove)

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write, unless something is missing already. NotOwnerError if the run's folder is another's by now."""
        with self._lock:
            if self._is_lost:
                return
            self._folder.owner.check()
            try:
                write()
            except OSError as error:
                if not is_disk_error(error):
                    raise
                self._is_lost = True
                self._events.add("evaluation_not_kept", name=self._name, reason=reason_of(error))
