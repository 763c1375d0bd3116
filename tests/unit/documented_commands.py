"""The commands in the blocks of the documents, each with what it needs to be run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[a-z, ]+) -->\n+)?^```(?P<language>\w*)\n(?P<lines>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SHELLS = {"bash", "sh", "shell", "console"}
COMMAND = re.compile(r"(\S*/)?(python|make|ray|launch\.py) ")
"""The first words of a block without a language that holds commands."""

NEEDS = {"gpu", "cluster", "run", "network"}
"""What a block may say that it needs: GPUs, a Ray cluster, a live or finished run, the network."""


@dataclass(frozen=True)
class Command:
    """One command of a document."""

    place: str
    """Document and line, for the names of tests."""
    words: tuple[str, ...]
    needs: frozenset[str]

    @property
    def arguments(self) -> list[str]:
        """What follows `launch.py`; empty where it is another command."""
        words = [*self.words]
        return words[words.index("launch.py") + 1 :] if "launch.py" in words else []

    def __str__(self) -> str:
        return f"{self.place} {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Every command of every document."""
    return [command for document in DOCUMENTS for command in commands_of(document)]


def commands_of(document: Path) -> Iterator[Command]:
    """The commands of one document; ValueError for a need that there is not."""
    text = document.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block["language"] not in SHELLS and not (not block["language"] and COMMAND.match(block["lines"])):
            continue
        needs = frozenset(word.strip() for word in (block["needs"] or "").split(",") if word.strip())
        if unknown := needs - NEEDS:
            raise ValueError(f"{document.name}: needs {unknown}; known are {sorted(NEEDS)}")
        line = text[: block.start("lines")].count("\n") + 1
        for number, words in _lines(block["lines"]):
            yield Command(f"{document.relative_to(ROOT)}:{line + number}", words, needs)


def _lines(block: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number and words of each line, joined where it ends with a backslash, without comments."""
    joined = ""
    for number, line in enumerate(block.splitlines()):
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            if words := shlex.split(joined, comments=True):
                yield number, tuple(words)
            joined = ""
