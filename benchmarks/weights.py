"""Publish a weight set and load it into a running engine, against a plain copy of its bytes.

    .venv/bin/python benchmarks/weights.py                  # 134.5 M parameters, 269 MB, one engine that generates
    .venv/bin/python benchmarks/weights.py --size tiny      # what does not grow with the bytes
    .venv/bin/python benchmarks/weights.py --engines 2 --file           # two share a file: they fetch once
    .venv/bin/python benchmarks/weights.py --delta --changed 0.05       # differences only

The real path (`benchmarks/weight_update.py`): a rank that yields buckets, Ray's object store, the weight store of
a run, a rollout worker with the real engine, which keeps generating. After every update NumPy copies as many
bytes, beside the same generation:

    update   publish_s (golden log-probs, buckets, checksums, Ray's copy), fetch_s, check_s (checksums; with --file
             the node's file), pause_s, load_s (vLLM's parameters); publish_and_load_s is their sum without
             golden_s, the forward pass by which the learner says what the engine must reproduce. verify_s is that
             of the engine; update_s lasts from the call of publish until it has verified the version; stopped_s
             (pause, load, verify) is how long it makes no token; gap_s is the longest time between two steps. Of
             several engines the slowest counts
    copy     seconds into memory that was written before, and limit_s: twice the copy, plus 0.2 s, which
             publish_and_load_s must not exceed; new_s: the same copy into memory that was never touched
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402
from benchmarks.weight_update import scene, update  # noqa: E402
from benchmarks.weight_update_workers import SIZES  # noqa: E402
from cluster.connection import connected  # noqa: E402
from settings.cluster import ClusterConfig  # noqa: E402

PARTS = ("publish_s", "fetch_s", "check_s", "pause_s", "load_s")
COPIES, FIXED_S = 2, 0.2
RATIOS = (
    Ratio("publish_and_load_s", "update", "copy", denominator_key="limit_s"),
    Ratio("update_s", "update", "copy", denominator_key="limit_s"),
    Ratio("publish_and_load_s", "update", "copy", denominator_key="seconds"),
    Ratio("gap_s", "update", "update", denominator_key="load_s"),
    Ratio("stopped_s", "update", "update", denominator_key="load_s"),
)


def copy(num_bytes: int) -> dict[str, float]:
    """Copy so many bytes twice: into memory that was never touched, and there again."""
    source, target = np.ones(num_bytes, np.uint8), np.empty(num_bytes, np.uint8)
    seconds = list[float]()
    for _ in range(2):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    new_s, copy_s = seconds
    limit_s = COPIES * copy_s + FIXED_S
    return {"seconds": copy_s, "new_s": new_s, "limit_s": limit_s, "gb_per_s": num_bytes / copy_s / 1e9}


async def measure(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], int]:
    """Update and copy in turn; returns what was measured, and the bytes of a version."""
    results: dict[str, list[dict[str, float]]] = {"update": [], "copy": []}
    num_bytes = 0
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        async with scene(options, Path(folder)) as here:
            for version in range(1, options.warmup + options.runs + 1):
                parts = await update(here, version, settle_s=options.settle_s)
                num_bytes = int(parts["bytes"])
                parts["publish_and_load_s"] = sum(parts[name] for name in PARTS) - parts["golden_s"]
                parts["gb_per_s"] = num_bytes / parts["publish_and_load_s"] / 1e9
                copied = await asyncio.to_thread(copy, num_bytes)
                if version > options.warmup:
                    results["update"].append(parts)
                    results["copy"].append(copied)
    return results, num_bytes


def main() -> None:
    """Measure and print one row."""
    parser = benchmark_parser(__doc__, runs=7, warmup=4)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=2, help="responses in flight on one engine [2]")
    parser.add_argument(
        "--changed", type=float, default=0.05, help="share of weights that a version changes [0.05]"
    )
    parser.add_argument("--delta", action="store_true", help="publish differences too (weights.delta)")
    parser.add_argument("--file", action="store_true", help="engines of the node share a file, as with --delta")
    parser.add_argument("--settle-s", type=float, default=0.5, help="generation before and after an update [0.5]")
    options = parser.parse_args()
    with connected(ClusterConfig(num_cpus=4, object_store_gib=1.5), lambda nodes, is_local: None):
        results, num_bytes = asyncio.run(measure(options))
    emit(result_row("weights", vars(options), results, RATIOS, bytes=num_bytes), is_saved=options.save)


if __name__ == "__main__":
    main()
