"""Definitions of benchmarks: where the problems are, what the columns are called, and what is expected of them.

    definition = load_definition("gsm8k")     # configs/benchmarks/gsm8k.yaml
    problems = definition.read(rows)          # rows: dicts, of the hub's data set or a local copy
    for warning in definition.mismatches(problems): ...

The problems themselves are not part of the project: a definition names a data set of the hub, and reads a local
copy as well, whose columns may have other names.
"""

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from settings.engine import Positive, Section
from settings.load import load_settings

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "benchmarks"
"""Holds one `NAME.yaml` per benchmark."""

Names = Annotated[list[str], Field(min_length=1)]
GROUPED_DIGITS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


@dataclass(frozen=True)
class BenchmarkProblem:
    """One problem and its gold answer, as text."""

    problem_id: str
    problem: str
    answer: str


class ColumnsConfig(Section):
    """Possible names of each column; the first that a row has is used."""

    problem: Names = Field(default=["problem", "question"])
    """The problem as text."""
    answer: Names = Field(default=["answer"])
    """Column that contains the gold answer; a list of answers is joined by commas."""
    id: Names = Field(default=["id"])
    """Id of a problem; by default `NAME-0`, `NAME-1`, ... in the order of the rows."""


class BenchmarkDefinition(Section):
    """One benchmark: its data set, columns, extraction of the gold answer, and expected content."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,50}$")]
    """Name in options and results; must be that of the file."""
    title: str
    """Display name."""
    path: str
    """Name of the data set on the Hugging Face hub, or a local file or folder."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "test"
    """Split of the data set."""
    revision: str | None = None
    """Commit of the data set on the hub; by default the newest. The hash detects different content."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, on the hub and of local copies."""
    extraction: Literal["answer", "after ####", "boxed"] = "answer"
    """The gold answer: the column as it is, what follows its last `####`, or the content of its last `\\boxed{}`.
    A text without that marker is taken as it is."""
    expected_size: Positive
    """Number of problems."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Order-independent hash of problems and answers: see `fingerprint`."""
    source: str
    """Authors of the benchmark, and origin of the copy that was hashed."""
    licence: str
    """Terms under which it was published."""
    note: str = ""
    """Remarks, e.g. versions in use and what was not verified."""

    @model_validator(mode="after")
    def _is_a_hub_name_or_path(self) -> Self:
        if not self.path.strip():
            raise ValueError("path must name a data set, file or folder, got ''")
        return self

    def read(self, rows: Iterable[Mapping[str, Any]]) -> list[BenchmarkProblem]:
        """The problems in the order of the rows; ValueError naming the row and the column that is missing."""
        problems = [self._problem(row, index) for index, row in enumerate(rows)]
        if not problems:
            raise ValueError(f"benchmark {self.name}: the data set has no rows")
        ids = [problem.problem_id for problem in problems]
        if len(set(ids)) < len(ids):
            repeated = next(each for each in ids if ids.count(each) > 1)
            raise ValueError(f"benchmark {self.name}: two problems have the id {repeated!r}")
        return problems

    def mismatches(self, problems: Sequence[BenchmarkProblem]) -> list[str]:
        """Warnings, each naming what was expected and what was found; none if this is the expected data."""
        size, found = len(problems), fingerprint(problems)
        warnings = []
        if size != self.expected_size:
            warnings.append(f"benchmark {self.name}: expected {self.expected_size} problems, found {size}")
        if found != self.sha256:
            warnings.append(f"benchmark {self.name}: expected problems with sha256 {self.sha256}, found {found}")
        return warnings

    def _problem(self, row: Mapping[str, Any], index: int) -> BenchmarkProblem:
        problem = _text(self._value(row, index, "problem"))
        answer = _extracted(_text(self._value(row, index, "answer")), self.extraction)
        if not problem.strip() or not answer:
            what = "problem" if answer else "answer"
            raise ValueError(f"benchmark {self.name}: row {index} has an empty {what}")
        named = next((row[name] for name in self.columns.id if row.get(name) is not None), None)
        return BenchmarkProblem(f"{self.name}-{index}" if named is None else str(named), problem, answer)

    def _value(self, row: Mapping[str, Any], index: int, column: Literal["problem", "answer"]) -> Any:
        names: list[str] = getattr(self.columns, column)
        for name in names:
            if row.get(name) is not None:
                return row[name]
        raise ValueError(
            f"benchmark {self.name}: row {index} has none of the columns {', '.join(names)} "
            f"(columns.{column}); it has {', '.join(map(str, row))}"
        )


def known_benchmarks() -> list[str]:
    """Names of the definitions that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_definition(name: str) -> BenchmarkDefinition:
    """The definition of this name, or in this YAML file; ValueError naming the nearest name if there is none."""
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and name not in known_benchmarks():
        known = known_benchmarks()
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(f"benchmarks: unknown benchmark {name!r}{hint}; known are {', '.join(known)}")
    path = Path(name) if is_file else FOLDER / f"{name}.yaml"
    try:
        definition = load_settings(BenchmarkDefinition, str(path))
    except ValueError as error:
        reason = "; ".join(str(error).removeprefix("--config: ").splitlines())
        raise ValueError(f"benchmarks: {path.name}: {reason}") from error
    if definition.name != path.stem:
        raise ValueError(f"benchmarks: {path.name}: name must be {path.stem!r}, got {definition.name!r}")
    return definition


def fingerprint(problems: Iterable[BenchmarkProblem]) -> str:
    """SHA-256 of the normalised (problem, answer) pairs in sorted order, each as a line of JSON, in hex.

    Normalised: Unicode NFKC, and no white space at all; of answers, no dollar signs around or between them, no
    thousands separators, no `.0` at the end. So copies that differ in order, ids or layout have one hash.
    """
    pairs = sorted((_compact(each.problem), _compact_answer(each.answer)) for each in problems)
    lines = "".join(json.dumps(pair, ensure_ascii=True) + "\n" for pair in pairs)
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


def _compact(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _compact_answer(text: str) -> str:
    bare = GROUPED_DIGITS.sub(lambda match: match.group().replace(",", ""), _compact(text).replace("$", ""))
    return re.sub(r"^(-?\d+)\.0$", r"\1", bare)


def _text(value: Any) -> str:
    """A cell as text; the answers of a list are joined by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _extracted(text: str, extraction: str) -> str:
    if extraction == "after ####":
        text = text.rpartition("####")[2]
    if extraction == "boxed":
        text = _last_box(text)
    return text.strip()


def _last_box(text: str) -> str:
    """Content of the last box, or the text itself if it has none that is closed."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for position in range(start + len(r"\boxed"), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len(r"\boxed{") : position]
    return text
