"""How close a run comes to what its libraries allow: the sum of the parts of a step, each alone on all cores.

    .venv/bin/python benchmarks/parts.py --dtype float32
    .venv/bin/python benchmarks/parts.py --dtype bfloat16 --models smollm2 --batch-size 8 --steps 4 --skip 3

Variants, each in a process of its own, in turn: `generation` and `prefill` are vLLM's offline engine, `update` is
transformers with torch's AdamW (`raw_parts.py`), all on `--part-threads` threads; `ours-async` is a whole run
(`end_to_end.py`), with engines and learner in processes of their own on the same cores.

Efficiency is the sum of the three divided by our seconds per step. It can be above 1: one thread in each of three
processes wastes less than two threads in one, and our engines draw tokens without sorting the vocabulary.
"""

import json
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import run_variants  # noqa: E402
from benchmarks.end_to_end import add_options, run  # noqa: E402
from benchmarks.raw_parts import generation, prefill, prepare, update  # noqa: E402
from benchmarks.rows import benchmark_parser, emit, result_row, spread  # noqa: E402
from benchmarks.workload import make  # noqa: E402

RAW = {"generation": generation, "prefill": prefill, "update": update}


def main() -> None:
    """Measure all in turn, or one (`--variant`) here."""
    parser = benchmark_parser(__doc__, warmup=0)
    add_options(parser)
    parser.add_argument("--part-threads", type=int, default=2, help="of each part alone")
    parser.add_argument("--repeats", type=int, default=3, help="steps of a part, after one that is not counted")
    arguments = parser.parse_args()
    workload = make(arguments.models, batch_size=arguments.batch_size)
    if arguments.variant in RAW:
        prepare(arguments.part_threads)
        print(json.dumps(RAW[arguments.variant](workload, arguments.dtype, arguments.repeats)))
        return
    if arguments.variant is not None:
        print(json.dumps(run(workload, arguments.variant, arguments)))
        return
    options, results = run_variants(__file__, arguments, [*RAW, "ours-async"])
    rounds = zip(*(results[name] for name in (*RAW, "ours-async")), strict=True)
    efficiency = [sum(part["seconds"] for part in parts) / ours["seconds_per_step"] for *parts, ours in rounds]
    row = result_row("parts", options, results)
    row["ratios"] = {"efficiency: sum of the parts / ours": spread(efficiency) | {"better": "higher"}}
    emit(row, is_saved=arguments.save)
    print(f"efficiency {median(efficiency):.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
