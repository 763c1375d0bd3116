"""A rollout worker against vLLM's own offline engine: the responses of a step, in the same threads.

    .venv/bin/python benchmarks/rollout.py --dtype bfloat16 --part-threads 2

The worker (`worker_parts.py`, without Ray) also makes Arrow tables, stamps weight versions, and seeds responses.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import run_variants  # noqa: E402
from benchmarks.raw_parts import generation, prepare  # noqa: E402
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402
from benchmarks.workload import make  # noqa: E402


def main() -> None:
    """Measure both in turn, or one (`--variant worker` or `raw`) here."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", choices=("qwen3", "smollm2"), default="qwen3")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--part-threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="steps of a run, after one that is not counted")
    arguments = parser.parse_args()
    workload = make(arguments.models, batch_size=arguments.batch_size)
    if arguments.variant is None:
        options, results = run_variants(__file__, arguments, ("worker", "raw"))
        ratios = [Ratio("seconds", "raw", "worker", better="higher")]
        emit(result_row("rollout", options, results, ratios), is_saved=arguments.save)
        return
    prepare(arguments.part_threads)
    if arguments.variant == "raw":
        print(json.dumps(generation(workload, arguments.dtype, arguments.repeats)))
        return
    from benchmarks.worker_parts import rollout

    print(json.dumps(rollout(workload, arguments.dtype, arguments.repeats, threads=arguments.part_threads)))


if __name__ == "__main__":
    main()
