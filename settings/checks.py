"""The checks of a run by key, what each found, and whether a run may start.

    checks = Checks(force=["chat_template"])
    checks.add("tokenizer", [Finding("error", "teacher.model_path: another tokenizer", "take its family")])

A collector raises the first error that is not forced, in one line, or collects them all for a table.
"""

import difflib
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "error", "forced", "skipped"]
WORST_FIRST: tuple[Status, ...] = ("error", "forced", "warning", "ok", "skipped")

CHECKS: dict[str, str] = {
    "paths": "models, data and run folder can be read, here and on every node",
    "tokenizer": "the same ids stand for the same bytes in every model",
    "padded_rows": "every id has a row in every model; the rows that log-probs are cut to",
    "stop_ids": "generation ends where student and teachers end an answer; the stop mode fits",
    "chat_template": "student and teachers see the same prompt",
    "context": "prompt and response fit into every model's context",
    "data": "lengths, answers and sources of the training prompts",
    "architecture": "the learner can train a model of this family",
    "placement": "every worker finds a node",
    "memory": "weights, optimizer, activations and cache fit into the memory of the nodes",
    "disk": "checkpoints and export fit onto the disk",
    "export": "what comes at the end of a run works: export, model card, report, checkpoints, upload",
    "replicas": "all workers of a frozen model give the same log-probs",
    "golden": "engines reproduce the learner's log-probs of the golden sequence",
}
"""Key of every check and what it finds out, in the order in which they are made."""


class RefusedError(ValueError):
    """A check found that training would be wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    status: Literal["ok", "warning", "error"]
    message: str
    remedy: str = ""
    is_hard: bool = False
    """True: nothing could run, so that force cannot help."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found. `details` are JSON values."""

    key: str
    status: Status
    findings: tuple[Finding, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The findings that decided the status, in one line."""
        decisive = "error" if self.status == "forced" else self.status
        texts = [each.message for each in self.findings if each.status == decisive or self.status == "skipped"]
        return "; ".join(dict.fromkeys(texts))

    def row(self) -> dict[str, Any]:
        """The result as JSON values."""
        findings = [{"status": f.status, "message": f.message, "remedy": f.remedy} for f in self.findings]
        own = {"key": self.key, "status": self.status, "message": self.message, "findings": findings}
        return own | {"details": self.details, "seconds": round(self.seconds, 3)}


class Checks:
    """Collects what checks find, by key."""

    def __init__(self, *, force: Collection[str] = (), collects: bool = False) -> None:
        """`force`: keys whose errors do not stop the run. `collects`: errors are kept for later, not raised."""
        for key in force:
            _check_known(key)
        self.force = frozenset(force)
        self._collects = collects
        self._results: dict[str, CheckResult] = {}

    def add(
        self, key: str, findings: Sequence[Finding], details: dict[str, Any] | None = None, *, seconds: float = 0.0
    ) -> CheckResult:
        """Enter what a check found; RefusedError, one line, for an error that is neither forced nor kept."""
        result = self.record(key, findings, details, seconds=seconds)
        if result.status == "error" and not self._collects:
            raise RefusedError(self.line_of(result))
        return result

    def record(
        self, key: str, findings: Sequence[Finding], details: dict[str, Any] | None = None, *, seconds: float = 0.0
    ) -> CheckResult:
        """Enter what a check found, and raise nothing. What it found before stays, unless it was well."""
        _check_known(key)
        earlier = self._results.get(key, CheckResult(key, "ok"))
        kept = [each for each in earlier.findings if each.status != "ok"]
        found = tuple(dict.fromkeys([*kept, *findings]))
        status = _status(found, is_forced=key in self.force)
        given = earlier.details | (details or {})
        result = self._results[key] = CheckResult(key, status, found, given, earlier.seconds + seconds)
        return result

    def skip(self, key: str, reason: str) -> None:
        """Enter that a check was not made, unless it has a result."""
        if key not in self._results:
            self._results[key] = CheckResult(key, "skipped", (Finding("ok", reason),))

    @contextmanager
    def guard(self, key: str, *, is_hard: bool = False) -> Iterator[None]:
        """Take a ValueError or OSError inside for an error of this check. With `is_hard` it cannot be forced."""
        start = time.monotonic()
        try:
            yield
        except RefusedError:
            raise
        except (OSError, ValueError) as error:
            finding = Finding("error", str(error) or type(error).__name__, is_hard=is_hard)
            self.add(key, [finding], seconds=time.monotonic() - start)

    def line_of(self, result: CheckResult) -> str:
        """An error in one line that names its key and, if it helps, how it is forced."""
        remedy = next((f.remedy for f in result.findings if f.status == "error" and f.remedy), "")
        parts = [result.message, *([remedy] if remedy else [])]
        is_hard = any(f.is_hard for f in result.findings if f.status == "error")
        hint = "" if is_hard else f"; --force {result.key} continues anyway"
        return f"{'; '.join(parts)} (check {result.key}{hint})"

    @property
    def results(self) -> list[CheckResult]:
        """All results, in the order of `CHECKS`."""
        return [self._results[key] for key in CHECKS if key in self._results]

    @property
    def errors(self) -> list[CheckResult]:
        """Results because of which training would be wrong."""
        return [result for result in self.results if result.status == "error"]

    @property
    def forced(self) -> list[str]:
        """Keys of checks that failed and were forced."""
        return [result.key for result in self.results if result.status == "forced"]

    def report(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        return {
            "ok": not self.errors,
            "force": sorted(self.force),
            "forced": self.forced,
            "checks": [result.row() for result in self.results],
        }


def _status(findings: Sequence[Finding], *, is_forced: bool) -> Status:
    errors = [each for each in findings if each.status == "error"]
    if errors:
        return "forced" if is_forced and not any(each.is_hard for each in errors) else "error"
    return "warning" if any(each.status == "warning" for each in findings) else "ok"


def _check_known(key: str) -> None:
    if key not in CHECKS:
        close = difflib.get_close_matches(key, CHECKS, n=1, cutoff=0.0)
        raise ValueError(f"--force {key}: unknown check; did you mean {close[0]}? (checks: {', '.join(CHECKS)})")
