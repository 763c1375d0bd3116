"""Benchmarks as prompts: read from a local copy or the hub, compared with their definition, rendered.

One benchmark comes from `evaluation.data_path`, the user's own data; the others are named in
`evaluation.benchmarks`, and their definitions say what is expected (`settings/benchmarks.py`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inputs.problems import Problem, read_problems
from inputs.rendering import Prompt
from inputs.rows import open_data
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
        found.append(_checked(evaluation.benchmark, evaluation.data_path, DATA_PATH, problems, None))
    return [replace(each, prompts=render(each.every_problem[: evaluation.max_problems])) for each in found]


def _read(name: str, path: str | None) -> BenchmarkPrompts:
    """A benchmark from `path`, or from where its definition says; one without a definition needs a path."""
    is_defined = path is None or name in known_benchmarks() or name.endswith((".yaml", ".yml"))
    definition = load_definition(name) if is_defined else _undefined(name, path or "")
    field = f"evaluation.paths.{definition.name}"
    problems = [
        Problem(each.problem_id, each.problem, each.answer, definition.name)
        for each in definition.read(_rows(definition, name, path, field))
    ]
    where = path or definition.path
    return _checked(definition.name, where, field, problems, definition if is_defined else None)


def _checked(
    name: str, path: str, field: str, problems: list[Problem], definition: BenchmarkDefinition | None
) -> BenchmarkPrompts:
    """The benchmark, not yet rendered, after a warning for each difference from its definition."""
    every = [BenchmarkProblem(each.prompt_id, each.text, each.answer or "") for each in problems]
    for warning in [] if definition is None else definition.mismatches(every):
        logger.warning("%s (%s)", warning, path)
    return BenchmarkPrompts(name, path, field, problems, [], fingerprint(every), definition)


def _rows(definition: BenchmarkDefinition, name: str, path: str | None, field: str) -> Iterator[dict[str, Any]]:
    chosen = {"subset": definition.subset, "split": definition.split, "revision": definition.revision}
    try:
        opened = open_data(path or definition.path, **chosen, field=field)
        yield from (row for _, row in opened.rows)
    except ValueError as error:
        if path is not None:
            raise
        raise ValueError(
            f"{error}; give a local copy (a data file or folder) with --data {name}=FILE, or as "
            f"evaluation.paths.{name}"
        ) from error


def _undefined(name: str, path: str) -> BenchmarkDefinition:
    """A definition for a benchmark without one: the usual columns; size and hash mean nothing."""
    nothing: dict[str, Any] = {"expected_size": 1, "sha256": "0" * 64, "source": "", "licence": ""}
    return BenchmarkDefinition(name=name, title=name, path=path, **nothing)
