"""Variants of a benchmark, each run in a process of its own, one after the other, round by round."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

Results = dict[str, list[dict[str, float]]]
"""By variant, what each run measured."""

NOT_OPTIONS = ("runs", "warmup", "save", "variant")


def run_variants(
    script: str,
    arguments: argparse.Namespace,
    variants: Sequence[str],
    *,
    pythons: Mapping[str, str] | None = None,
    timeout_s: float = 1800,
) -> tuple[dict[str, object], Results]:
    """Run `script --variant NAME`, `arguments.runs` times each; returns the options of all and the results.

    Each run prints one JSON object of numbers as its last line. The first `arguments.warmup` rounds (default 0)
    are not counted. `pythons` names another interpreter for some variants. RuntimeError with the end of its output
    for a run that fails.
    """
    size = {key: value for key, value in vars(arguments).items() if key not in NOT_OPTIONS}
    options = [
        _option(key, one)
        for key, value in size.items()
        for one in (value if isinstance(value, list) else [value])
        if one is not None and one is not False
    ]
    results: Results = {name: [] for name in variants}
    warmup = getattr(arguments, "warmup", 0)
    for round_index in range(warmup + arguments.runs):
        for name in variants:
            python = (pythons or {}).get(name, sys.executable)
            measured = run_here(name, [python, script, *options, f"--variant={name}"], timeout_s=timeout_s)
            note = f"round {round_index + 1 - warmup}" if round_index >= warmup else "warm-up"
            print(
                f"{note} {name}: {json.dumps(measured)} load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True
            )
            if round_index >= warmup:
                results[name].append(measured)
    return {**size, "runs": arguments.runs, "warmup": warmup}, results


def _option(key: str, value: object) -> str:
    name = f"--{key.replace('_', '-')}"
    return name if value is True else f"{name}={value}"


def run_here(name: str, command: Sequence[str], *, timeout_s: float) -> dict[str, float]:
    """Run one variant and return what it printed last; RuntimeError with the end of its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians_of(results: Mapping[str, Sequence[Mapping[str, float]]], key: str) -> dict[str, float]:
    """By variant, the median of one number."""
    return {name: statistics.median(run[key] for run in runs) for name, runs in results.items()}
