"""Shows results for people: one line per check, then what is not well with cause and remedy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from settings.checks import CHECKS, CheckResult, Checks

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red", "forced": "magenta", "skipped": "dim"}
MAX_TEXT = 160
"""Characters of a message in the table; the whole text stands below it."""


def show(checks: Checks, *, console: Console, phases: Mapping[str, float]) -> None:
    """Print the table, what is not well, and the seconds of each phase."""
    table = Table(title="preflight", title_justify="left", show_lines=False, expand=False)
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", overflow="fold")
    for result in checks.results:
        colour = COLOURS[result.status]
        table.add_row(result.key, f"[{colour}]{result.status}[/]", escape(_short(result.message)))
    console.print(table)
    for line in problem_lines(checks.results):
        console.print(escape(line), soft_wrap=True, highlight=False)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in phases.items())
    console.print(f"{verdict(checks)}; {seconds}, {sum(phases.values()):.1f} s in all", soft_wrap=True)


def problem_lines(results: Sequence[CheckResult]) -> Iterator[str]:
    """What is not well: message, remedy and the lines of its details that help."""
    for result in results:
        if result.status in ("ok", "skipped"):
            continue
        yield ""
        yield f"{result.key}: {result.status} ({CHECKS[result.key]})"
        for finding in result.findings:
            if finding.status != "ok":
                yield f"  {finding.message}"
                if finding.remedy:
                    yield f"    remedy: {finding.remedy}"
        yield from (f"  | {line}" for line in _detail_lines(result.details))
        if result.status == "error" and not any(f.is_hard for f in result.findings):
            yield f"    --force {result.key} continues anyway"


def verdict(checks: Checks) -> str:
    """In one sentence whether a run would be right."""
    if checks.errors:
        return f"training would be wrong: {', '.join(result.key for result in checks.errors)}"
    forced = f", {', '.join(checks.forced)} forced" if checks.forced else ""
    return f"ready to train{forced}"


def _detail_lines(details: Mapping[str, Any]) -> Iterator[str]:
    """The texts among the details: arithmetic, differences in context."""
    for value in details.values():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            yield from value


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
