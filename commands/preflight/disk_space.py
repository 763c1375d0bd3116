"""Check of disk space: checkpoints, export and the rows of a run fit where they are written."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.preflight.memory import GIB, ITEM_BYTES, OPTIMIZER_BYTES, gib
from commands.preflight.node_facts import existing_parent
from inputs.shapes import Shape
from records.disk import free_bytes
from settings.checks import Finding
from settings.run import RunConfig


@dataclass(frozen=True)
class Wanted:
    """Bytes that will be written into one folder."""

    path: Path
    num_bytes: float
    how: str


def disk_findings(
    config: RunConfig, student: Shape | None, *, run_folder: Path, checkpoints: Path
) -> tuple[list[Finding], dict[str, Any]]:
    """Whether the disks have room for what the run writes; the arithmetic is in the details."""
    wanted = wanted_of(config, student, run_folder=run_folder, checkpoints=checkpoints)
    by_disk: dict[int, list[Wanted]] = defaultdict(list)
    for each in wanted:
        by_disk[existing_parent(each.path).stat().st_dev].append(each)
    findings = list[Finding]()
    if student is None:
        text = "the student's size is not known, and so not the size of its checkpoints"
        findings.append(Finding("warning", text))
    lines = list[str]()
    for together in by_disk.values():
        place = together[0].path
        needed, free = sum(each.num_bytes for each in together), free_bytes(place)
        lines += [f"{each.path}: {gib(each.num_bytes)} = {each.how}" for each in together]
        text = f"{gib(needed)} needed, {gib(free)} free at {place}"
        if needed > free:
            remedy = "set checkpoint.keep lower, or runs_path or checkpoint.path to a larger disk"
            findings.append(Finding("error", f"runs_path: too little disk space: {text}", remedy))
        elif not findings:
            findings.append(Finding("ok", text))
    return findings, {"arithmetic": lines}


def wanted_of(config: RunConfig, student: Shape | None, *, run_folder: Path, checkpoints: Path) -> list[Wanted]:
    """What a run writes: checkpoints (one more than are kept, while it is written), export, rows."""
    rows = Wanted(run_folder, config.preflight.min_free_gib * GIB, "preflight.min_free_gib")
    if student is None:
        return [rows]
    item = ITEM_BYTES[config.learner.dtype]
    one = checkpoint_bytes(student, item_bytes=item)
    num = 2 if config.checkpoint.url is not None else config.checkpoint.keep + 1
    held = _size_of(checkpoints)
    less = f", less {gib(held)} that are there" if held else ""
    how = f"{num} checkpoints of {gib(one)} ({OPTIMIZER_BYTES} + {item} bytes per parameter){less}"
    return [
        Wanted(checkpoints, max(0.0, num * one - held), how),
        Wanted(run_folder, student.num_parameters * item, f"export, {item} bytes per parameter"),
        rows,
    ]


def checkpoint_bytes(student: Shape, *, item_bytes: int) -> float:
    """Bytes of one checkpoint: fp32 master weights and two moments, and the weights in the learner's dtype."""
    return student.num_parameters * (OPTIMIZER_BYTES + item_bytes)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
