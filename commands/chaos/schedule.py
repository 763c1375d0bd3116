"""What is killed when: pure, and the same for the same seed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

KINDS = ("rollout", "teacher", "reference", "learner", "node")
"""What can be killed: a worker of a pool, or a whole node with its raylet."""


@dataclass(frozen=True)
class Schedule:
    """Kills at regular times, of kinds that take turns in an order drawn anew each round."""

    every_s: float
    duration_s: float
    kinds: tuple[str, ...]
    seed: int

    def kills(self) -> Iterator[tuple[float, str]]:
        """Seconds from the beginning, and the kind of each kill."""
        random, number = Random(self.seed), 0
        while True:
            for kind in random.sample(self.kinds, len(self.kinds)):
                number += 1
                if number * self.every_s > self.duration_s:
                    return
                yield number * self.every_s, kind


def read_seconds(option: str, text: str) -> float:
    """Seconds of `500ms`, `30s`, `10m`, `1h` or a plain number; ValueError naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text.strip())
    seconds = float(match[1]) * UNITS_S[match[2] or "s"] if match and len(text) < 20 else 0.0
    if seconds <= 0:
        raise ValueError(f"{option} must be a time > 0 such as 30s, 10m or 1h, got {text!r}")
    return seconds


def read_kinds(text: str) -> tuple[str, ...]:
    """The kinds of `rollout,teacher`; ValueError naming the nearest valid one."""
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        from difflib import get_close_matches

        close = get_close_matches(unknown[0], KINDS, n=1, cutoff=0.0) if unknown else ["rollout"]
        raise ValueError(
            f"--kill must be of {', '.join(KINDS)}, got {unknown[0] if unknown else text!r} (nearest valid: "
            f"{close[0]})"
        )
    return kinds


def victims(kind: str, workers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Workers of a kind that can be killed, from a run's status: those that have a process."""
    return [
        worker
        for worker in workers
        if _kind_of(worker["role"]) == kind and worker["pid"] and worker["state"] == "healthy"
    ]


def _kind_of(role: str) -> str:
    return "teacher" if role.startswith("teacher") else role
