"""Sample responses side by side, each token in the colour of its reward; settings, and how to run again."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from reporting.page.run_data import Row, RunData, number

NUM_SHADES = 5
"""Shades of each colour; the darkest is for the largest 5 % of the magnitudes of a run, and beyond."""

QUANTILE = 0.95

OWN = frozenset({"run_name", "runs_path"})
"""Settings that always differ and say nothing."""


@dataclass(frozen=True)
class TokenView:
    """One token: its text, its shade from -NUM_SHADES to NUM_SHADES, and what is said about it."""

    text: str
    shade: int
    details: str
    is_trained: bool


@dataclass(frozen=True)
class ResponseView:
    """One response."""

    when: str
    step: int
    tokens: list[TokenView]
    num_tokens: int
    mean: float | None
    """Mean of its values."""
    is_truncated: bool

    @property
    def num_left_out(self) -> int:
        """Tokens at the end that were not kept."""
        return self.num_tokens - len(self.tokens)


@dataclass(frozen=True)
class ProblemView:
    """One problem and its responses, first the one before training."""

    problem_id: str
    prompt: str
    responses: list[ResponseView]


@dataclass(frozen=True)
class SamplesView:
    """All samples of a run."""

    problems: list[ProblemView]
    value: str
    """What the colours stand for: reward, log-ratio, or nothing."""
    scale: float
    """Magnitude of the darkest shade."""


def samples_view(samples: Sequence[Row]) -> SamplesView | None:
    """Problems in the order of the file; None without any. Rows that are no sample are left out."""
    rows = [row for row in samples if isinstance(row.get("tokens"), list)]
    if not rows:
        return None
    sizes = sorted(abs(value) for row in rows for value in _values(row) if value is not None)
    scale = sizes[int(QUANTILE * (len(sizes) - 1))] if sizes else 0.0
    value = next((str(row["value"]) for row in rows if row.get("value")), "")
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(str(row.get("problem_id", "")), []).append(row)
    problems = [
        ProblemView(problem_id, str(each[0].get("prompt", "")), [_response(row, value, scale) for row in each])
        for problem_id, each in by_problem.items()
    ]
    return SamplesView(problems, value, scale)


def _response(row: Row, name: str, scale: float) -> ResponseView:
    texts, values = row["tokens"], _values(row)
    student, teacher = (_padded(row.get(key), len(texts)) for key in ("student_logp", "teacher_logp"))
    trained = _padded(row.get("is_trained"), len(texts))
    tokens = [
        TokenView(
            text=str(text),
            shade=_shade(value, scale),
            details=_details(name, value, student_logp, teacher_logp, is_trained=is_trained is not False),
            is_trained=is_trained is not False,
        )
        for text, value, student_logp, teacher_logp, is_trained in zip(
            texts, values, student, teacher, trained, strict=True
        )
    ]
    known = [value for value in values if value is not None]
    return ResponseView(
        when=str(row.get("when", "")),
        step=int(number(row, "step") or 0),
        tokens=tokens,
        num_tokens=max(int(number(row, "num_tokens") or 0), len(tokens)),
        mean=sum(known) / len(known) if known else None,
        is_truncated=row.get("finish_reason") == "length",
    )


def _details(name: str, value: float | None, student_logp: Any, teacher_logp: Any, *, is_trained: bool) -> str:
    parts = [f"teacher p {_probability(teacher_logp)}", f"student p {_probability(student_logp)}"]
    parts += [f"{name} {value:+.4f}"] if value is not None and name else []
    parts += [] if is_trained else ["not trained on"]
    return ", ".join(parts)


def _probability(logp: Any) -> str:
    return f"{exp(min(0.0, logp)):.4f}" if isinstance(logp, int | float) else "unknown"


def _shade(value: float | None, scale: float) -> int:
    """From -NUM_SHADES to NUM_SHADES; 0 below a tenth of the scale."""
    if value is None or scale <= 0 or abs(value) < 0.1 * scale:
        return 0
    size = min(NUM_SHADES, max(1, round(NUM_SHADES * abs(value) / scale)))
    return size if value > 0 else -size


def _values(row: Row) -> list[float | None]:
    found = _padded(row.get("values"), len(row["tokens"]))
    return [value if isinstance(value, int | float) else None for value in found]


def _padded(values: Any, length: int) -> list[Any]:
    """A list of that length, with None where there is nothing."""
    known = values if isinstance(values, list) else []
    return [*known[:length], *[None] * (length - len(known))]


# -- settings -------------------------------------------------------------------------------------------------


def differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Settings by dotted key that are not the same in all runs, and their value in each of them."""
    flat = [flattened(run.config.model_dump(mode="json")) if run.config is not None else {} for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each if key not in OWN)
    table = [(key, [str(each[key]) if key in each else "not set" for each in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def reproduction(run: RunData) -> list[str]:
    """Shell lines that make the run again."""
    lines = []
    commit, is_dirty = run.environment.get("git_commit"), run.environment.get("git_is_dirty")
    if commit:
        note = "  # the tree had uncommitted changes, which are not in it" if is_dirty else ""
        lines.append(f"git checkout {shlex.quote(str(commit))}{note}")
    config = run.folder.path / "config.yaml"
    again = ["python", "launch.py", "train", "--config", str(config), "--run_name", f"{run.name}-again"]
    return [*lines, in_lines(shlex.join(again))]


def in_lines(command: str) -> str:
    """The same command with every option on a line of its own."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and not word.startswith("--"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n    ".join(lines)


def commands(run: RunData) -> list[str]:
    """The command lines by which the run was started and continued, as they were given."""
    started = [event for event in run.events if event["event"] == "run_started" and "command" in event]
    return [in_lines(str(event["command"])) for event in started]
