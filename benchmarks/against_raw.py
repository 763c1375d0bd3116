"""A worker of ours against the bare engine: the options and the alternation of `rollout.py` and `scoring.py`."""

import argparse
from pathlib import Path

from benchmarks.alternating import run_variants
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row


def worker_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both benchmarks take."""
    parser = benchmark_parser(description)
    parser.add_argument("--models", choices=("qwen3", "smollm2"), default="qwen3")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--part-threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="steps of a run, after one that is not counted")
    return parser


def compare(script: str, arguments: argparse.Namespace) -> None:
    """Run `worker` and `raw` in turn and print the row: how fast the worker is as a share of the bare engine."""
    options, results = run_variants(script, arguments, ("worker", "raw"))
    ratios = [Ratio("seconds", "raw", "worker", better="higher")]
    emit(result_row(Path(script).stem, options, results, ratios), is_saved=arguments.save)
