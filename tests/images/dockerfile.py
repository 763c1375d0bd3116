"""Reads docker/Dockerfile: as much of the language as it uses. Anything else is refused, nothing is skipped."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

KNOWN = {"ARG", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER", "WORKDIR"}
FLAG = re.compile(r"--([a-z-]+)(?:=(\S+))?\s+")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its flags in order, and the rest of its line."""

    name: str
    text: str
    flags: tuple[tuple[str, str], ...] = ()

    def flag(self, name: str) -> str | None:
        """Value of a flag that is there once at most; "" if it has none."""
        return dict(self.flags).get(name)

    def mounts(self) -> list[dict[str, str]]:
        """The fields of each --mount."""
        fields = [value.split(",") for name, value in self.flags if name == "mount"]
        return [dict(each.split("=", 1) for each in one) for one in fields]


@dataclass(frozen=True)
class Stage:
    """A stage: what it starts from, a stage or an image, and what is done to it."""

    name: str
    base: str
    instructions: tuple[Instruction, ...] = field(default=())


def read_stages(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in order; ValueError for what is not understood."""
    stages: dict[str, Stage] = {}
    for line in _logical_lines(path.read_text()):
        instruction = _instruction(line)
        if instruction.name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", instruction.text)
            if match is None or instruction.flags:
                raise ValueError(f"every stage must have a name: {line}")
            stages[match[2]] = Stage(match[2], match[1])
        elif not stages:
            raise ValueError(f"before the first stage: {line}")
        else:
            last = [*stages.values()][-1]
            stages[last.name] = Stage(last.name, last.base, (*last.instructions, instruction))
    return stages


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $NAME and ${NAME}; KeyError for a name that is not known."""
    return Template(text).substitute(values)


def pairs(text: str, values: Mapping[str, str]) -> dict[str, str]:
    """The NAME=VALUE of an ENV or LABEL line."""
    return dict(expand(word, values).split("=", 1) for word in shlex.split(text))


def words(text: str) -> list[str]:
    """The words of an instruction in JSON's form, which takes no shell."""
    found = json.loads(text)
    assert isinstance(found, list), text
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Lines joined where they end with a backslash, without comments and empty lines."""
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        joined += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            yield joined
            joined = ""


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" ")
    if name not in KNOWN or "<<" in rest:
        raise ValueError(f"not understood: {line}")
    flags = list[tuple[str, str]]()
    while match := FLAG.match(rest):
        flags.append((match[1], match[2] or ""))
        rest = rest[match.end() :]
    return Instruction(name, rest.strip(), tuple(flags))
