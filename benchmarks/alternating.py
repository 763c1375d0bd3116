"""Variants of a benchmark, each run in a process of its own, one after the other, round by round."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

Results = dict[str, list[dict[str, float]]]
"""By variant, what each run measured."""


def run_variants(
    script: str, arguments: argparse.Namespace, variants: Sequence[str]
) -> tuple[dict[str, object], Results]:
    """Run `script --variant NAME`, `arguments.runs` times each; returns the options of all and the results.

    Each run prints one JSON object of numbers.
    """
    size = {key: value for key, value in vars(arguments).items() if key not in ("runs", "variant")}
    options = [f"--{key}={value}" for key, value in size.items()]
    results: Results = {name: [] for name in variants}
    for _ in range(arguments.runs):
        for name in variants:
            line = [sys.executable, script, *options, "--variant", name]
            done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=1800)
            results[name].append(json.loads(done.stdout))
    return {**size, "runs": arguments.runs}, results


def medians_of(results: Mapping[str, Sequence[Mapping[str, float]]], key: str) -> dict[str, float]:
    """By variant, the median of one number."""
    return {name: statistics.median(run[key] for run in runs) for name, runs in results.items()}
