"""Benchmarks as prompts: read from a local copy or the hub, compared with their definition, rendered.

One benchmark comes from `evaluation.data_path`, the user's own data; the others are named in
`evaluation.benchmarks`, and their definitions say what is expected (`settings/benchmarks.py`).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inputs.problems import Problem, read_problems
from inputs.rendering import Prompt
from inputs.rows import open_rows
from settings.benchmarks import (
    BenchmarkDefinition,
    BenchmarkProblem,
    fingerprint,
    known_benchmarks,
    load_definition,
)
from settings.run import RunConfig

logger = logging.getLogger(__name__)

Render = Callable[[Sequence[Problem]], list[Prompt]]

DATA_PATH = "evaluation.data_path"


@dataclass(frozen=True)
class BenchmarkPrompts:
    """A benchmark ready to be evaluated on: its problems, each with its prompt, and where they came from."""

    name: str
    path: str
    field: str
    """The setting that named it, for errors."""
    every_problem: list[Problem]
    """Also those beyond `evaluation.max_problems`."""
    prompts: list[Prompt]
    """Of the first problems, those that are evaluated."""
    sha256: str
    """Of every problem (`settings/benchmarks.py`, fingerprint)."""
    definition: BenchmarkDefinition | None

    @property
    def problems(self) -> list[Problem]:
        """The problem of each prompt."""
        return self.every_problem[: len(self.prompts)]

    def facts(self) -> dict[str, Any]:
        """As recorded with results."""
        definition = self.definition
        return {
            "path": self.path,
            "num_problems": len(self.prompts),
            "size": len(self.every_problem),
            "sha256": self.sha256,
            "expected_size": None if definition is None else definition.expected_size,
            "expected_sha256": None if definition is None else definition.sha256,
            "is_expected": None if definition is None else definition.sha256 == self.sha256,
        }


def read_benchmarks(config: RunConfig, render: Render) -> list[BenchmarkPrompts]:
    """Every benchmark of a configuration; ValueError with one line for the first that cannot be read.

    Data other than the definition expects is used, with a warning.
    """
    evaluation = config.evaluation
    found = [_read(name, evaluation.paths.get(name)) for name in evaluation.benchmarks]
    if evaluation.data_path is not None:
        problems = read_problems(evaluation.data_path, DATA_PATH)
        found.append(_Read(evaluation.benchmark, evaluation.data_path, DATA_PATH, problems, None))
    return [each.rendered(render, evaluation.max_problems) for each in found]


@dataclass(frozen=True)
class _Read:
    name: str
    path: str
    field: str
    problems: list[Problem]
    definition: BenchmarkDefinition | None

    def rendered(self, render: Render, max_problems: int | None) -> BenchmarkPrompts:
        every = [BenchmarkProblem(each.prompt_id, each.text, each.answer or "") for each in self.problems]
        if self.definition is not None:
            for warning in self.definition.mismatches(every):
                logger.warning("%s (%s)", warning, self.path)
        return BenchmarkPrompts(
            self.name,
            self.path,
            self.field,
            self.problems,
            render(self.problems[:max_problems]),
            sha256=fingerprint(every),
            definition=self.definition,
        )


def _read(name: str, path: str | None) -> _Read:
    """A benchmark from `path`, or from where its definition says; one without a definition needs a path."""
    is_defined = path is None or name in known_benchmarks() or name.endswith((".yaml", ".yml"))
    definition = load_definition(name) if is_defined else _undefined(name, path or "")
    field = f"evaluation.paths.{definition.name}"
    problems = definition.read(_rows(definition, name, path, field))
    return _Read(
        definition.name,
        path or definition.path,
        field,
        [Problem(each.problem_id, each.problem, each.answer, definition.name) for each in problems],
        definition if is_defined else None,
    )


def _rows(definition: BenchmarkDefinition, name: str, path: str | None, field: str) -> Iterable[dict[str, Any]]:
    where = path or definition.path
    try:
        rows = open_rows(
            where, subset=definition.subset, split=definition.split, revision=definition.revision, field=field
        )
        yield from rows
    except ValueError as error:
        if path is not None:
            raise
        raise ValueError(
            f"{error}; give a local copy (a data file or folder) with --data {name}=FILE, or as "
            f"evaluation.paths.{name}"
        ) from error


def _undefined(name: str, path: str) -> BenchmarkDefinition:
    """What is assumed of a benchmark that nobody defined: the usual columns; size and hash mean nothing."""
    nothing: dict[str, Any] = {"expected_size": 1, "sha256": "0" * 64, "source": "", "licence": ""}
    return BenchmarkDefinition(name=name, title=name, path=path, **nothing)
