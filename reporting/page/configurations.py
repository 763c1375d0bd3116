"""The settings of runs: where they differ, and how a run is made again."""

import shlex
from collections.abc import Sequence
from typing import Any

from reporting.page.run_data import RunData

OWN = frozenset({"run_name", "runs_path"})
"""Settings that always differ and say nothing."""


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
