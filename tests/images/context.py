"""The build context: what of a folder .dockerignore lets through, by Docker's rules.

Patterns count from the root; `*` and `?` stop at a slash, `**` does not; a pattern that matches a folder matches
all below it; the last pattern that matches decides, and with `!` it lets through.
"""

import os
import re
from pathlib import Path

TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)


def context_files(root: Path) -> list[Path]:
    """The files of the context, relative to its root, sorted."""
    rules = read_rules(root / ".dockerignore")
    found = list[Path]()
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        links = [name for name in folders if (root / here / name).is_symlink()]
        found += [here / name for name in (*names, *links) if lets_through(rules, (here / name).as_posix())]
    return sorted(found)


def read_rules(path: Path) -> list[tuple[bool, re.Pattern[str]]]:
    """The patterns of a .dockerignore, each with whether it lets through."""
    lines = [line.strip() for line in path.read_text().splitlines() if not line.startswith("#")]
    return [(line.startswith("!"), _pattern(line.removeprefix("!"))) for line in lines if line]


def lets_through(rules: list[tuple[bool, re.Pattern[str]]], path: str) -> bool:
    """True if the file is in the context."""
    decision = True
    for lets, pattern in rules:
        if pattern.fullmatch(path):
            decision = lets
    return decision


def _pattern(line: str) -> re.Pattern[str]:
    text = ""
    for token in TOKEN.findall(line.strip().strip("/")):
        match token:
            case "**/":
                text += "(?:.*/)?"
            case "**":
                text += ".*"
            case "*":
                text += "[^/]*"
            case "?":
                text += "[^/]"
            case _:
                text += token if token.startswith("[") and len(token) > 1 else re.escape(token)
    return re.compile(f"{text}(?:/.*)?")
