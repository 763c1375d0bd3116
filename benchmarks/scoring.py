"""A teacher worker against vLLM's raw prefill: the scores of a step's sequences, in the same threads.

    .venv/bin/python benchmarks/scoring.py                                   # scores of the sampled tokens
    .venv/bin/python benchmarks/scoring.py --k 20 --call-tokens 8192         # the teacher's 20 likeliest too
    .venv/bin/python benchmarks/scoring.py --batch-tokens 8192              # tokens of an engine step, both sides

The worker (`worker_parts.py`, without Ray) takes rollout tables in calls of `--call-tokens` and returns scored
tables. `raw` is vLLM's offline engine with engine steps of 8,192 tokens, or of `--batch-tokens`; without it the
worker has its default of 2,048 on CPUs.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.against_raw import compare, worker_parser  # noqa: E402
from benchmarks.raw_parts import prefill, prepare  # noqa: E402
from benchmarks.workload import make  # noqa: E402


def main() -> None:
    """Measure both in turn, or one (`--variant worker` or `raw`) here."""
    parser = worker_parser(__doc__)
    parser.add_argument("--k", type=int, default=0, help="likeliest tokens of the teacher per position")
    parser.add_argument("--call-tokens", type=int, default=16384, help="tokens of a call of the worker")
    parser.add_argument("--batch-tokens", type=int, help="tokens of an engine step")
    arguments = parser.parse_args()
    workload = make(arguments.models, batch_size=arguments.batch_size)
    if arguments.variant is None:
        compare(__file__, arguments)
        return
    prepare(arguments.part_threads)
    sizes = {"k": arguments.k, "batch_tokens": arguments.batch_tokens}
    if arguments.variant == "raw":
        sizes["batch_tokens"] = arguments.batch_tokens or 8192
        print(json.dumps(prefill(workload, arguments.dtype, arguments.repeats, **sizes)))
        return
    from benchmarks.worker_parts import scoring

    sizes |= {"threads": arguments.part_threads, "call_tokens": arguments.call_tokens}
    print(json.dumps(scoring(workload, arguments.dtype, arguments.repeats, **sizes)))


if __name__ == "__main__":
    main()
