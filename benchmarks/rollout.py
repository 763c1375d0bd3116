"""A rollout worker against vLLM's own offline engine: the responses of a step, in the same threads.

    .venv/bin/python benchmarks/rollout.py --dtype bfloat16 --part-threads 2

The worker (`worker_parts.py`, without Ray) also makes Arrow tables, stamps weight versions, and seeds responses.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.against_raw import compare, worker_parser  # noqa: E402
from benchmarks.raw_parts import generation, prepare  # noqa: E402
from benchmarks.workload import make  # noqa: E402


def main() -> None:
    """Measure both in turn, or one (`--variant worker` or `raw`) here."""
    parser = worker_parser(__doc__)
    arguments = parser.parse_args()
    workload = make(arguments.models, batch_size=arguments.batch_size)
    if arguments.variant is None:
        compare(__file__, arguments)
        return
    prepare(arguments.part_threads)
    if arguments.variant == "raw":
        print(json.dumps(generation(workload, arguments.dtype, arguments.repeats)))
        return
    from benchmarks.worker_parts import rollout

    print(json.dumps(rollout(workload, arguments.dtype, arguments.repeats, threads=arguments.part_threads)))


if __name__ == "__main__":
    main()
