"""JSON lines on disk: one row per line, appended whole, read back without a torn last line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def append_row(path: Path, row: dict[str, Any], *, check: Callable[[], object] = lambda: None) -> None:
    """Append one row and hand it to the operating system; `check` may refuse it once the file is open."""
    with path.open("a", encoding="utf-8") as file:
        check()
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return all complete rows; a last line cut off by a crash is left out. Empty without the file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def drop_torn_line(path: Path) -> None:
    """Remove a last line that a crash cut off, so that appending goes on cleanly."""
    if path.is_file():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with path.open("r+b") as file:
                file.truncate(end)
