"""What the controller costs per rollout with many workers whose rollouts end one by one, in simulated time.

    .venv/bin/python benchmarks/controller_workers.py --workers 256 1024 --runs 5

`benchmarks/controller.py` measures engines that end all their work at once. Here engines take the time of engines
(`commands/plan/`), so that each rollout ends at a moment of its own and the controller looks at its workers
each time. The work of a run grows with the workers: `--per-engine` slots of a batch for each student engine.
Regimes: `rollout`, in which slots wait for full student engines; `teacher`, in which the queue of the teachers is
full and holds the streams up. Variants are REGIME-WORKERS, each in a process of its own, alternating. CPU time is
that of the whole simulation, engines included: an upper bound of the controller's own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import run_variants  # noqa: E402
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402

REGIMES = ("rollout", "teacher")
TEACHER_SHARE = {"rollout": 4.0, "teacher": 0.7}
"""What the teachers can score, over what the student engines generate."""


def measure(variant: str, per_engine: int, steps: int) -> dict[str, float]:
    """Simulate one variant here."""
    from cluster.connection import prepare_environment

    prepare_environment()
    from commands.plan.run import simulate

    regime, _, num_workers = variant.partition("-")
    config, rates = settings(regime, int(num_workers), per_engine, steps)
    start, cpu_start = time.perf_counter(), time.process_time()
    rows = simulate(config, rates)
    cpu_s, seconds = time.process_time() - cpu_start, time.perf_counter() - start
    rollouts = steps * config.batch_size
    assert sum(row["slots/rollout"] * row["time/step_s"] for row in rows) >= 0.99 * rollouts, "all were generated"
    waits = sum(row[f"time/{wait}_wait_s"] for row in rows for wait in ("rollout", "score"))
    return {
        "cpu_us_per_rollout": 1e6 * cpu_s / rollouts,
        "rollouts_per_s": rollouts / seconds,
        "rollouts": rollouts,
        "simulated_s": sum(row["time/step_s"] for row in rows),
        "learner_waits_share": waits / sum(row["time/step_s"] for row in rows),
    }


def settings(regime: str, num_workers: int, per_engine: int, steps: int) -> tuple[Any, Any]:
    """Half of the workers are student engines, the others teachers; the learner is never the limit."""
    from commands.plan.prompts import LengthsConfig
    from commands.plan.rates import RatesConfig
    from commands.plan.timing import EngineRates
    from commands.plan.workers import LearnerRates
    from settings.run import RunConfig

    num_engines = num_workers // 2
    pool = {"num_workers": num_engines, "resources": {"num_cpus": 0.01}}
    lengths = LengthsConfig(prompt=100, median=300, spread=0.7, max=2048)
    rollout = EngineRates(step_s=0.02, sequence_s=0, max_num_seqs=per_engine, load_s=0.2)
    generated = per_engine / rollout.step_s  # response tokens per second of a full engine
    scored = generated * (lengths.mean + lengths.prompt) / lengths.mean * TEACHER_SHARE[regime]
    config = RunConfig.model_validate(
        {
            **{"run_name": "controller", "batch_size": per_engine * num_engines, "max_steps": steps},
            **{"max_staleness": 8, "batches_ahead": 2, "student": {"model_path": "simulated"}},
            **{"data": {"train_path": "simulated"}, "evaluation": {"teacher": False}},
            **{"rollout": pool | {"max_in_flight": per_engine}, "checkpoint": {"every_steps": 0}},
            **{"teacher": pool | {"model_path": "simulated", "max_batch_tokens": 4096}},
            **{"learner": {"resources": {"num_cpus": 0.01}}, "logging": {"tensorboard": False}},
        }
    )
    learner = LearnerRates(step_s=0.1, tokens_per_s=1e12, publish_s=0.1)
    teacher = EngineRates(prefill_tokens_per_s=scored)
    return config, RatesConfig(rollout=rollout, teacher=teacher, learner=learner, lengths=lengths)


def main() -> None:
    """Compare all variants, or measure one (`--variant`) for the parent process."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--per-engine", "--per_engine", type=int, default=8, help="slots of a batch per engine")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments.per_engine, arguments.steps)))
        return
    workers: list[int] = vars(arguments).pop("workers")
    variants = [f"{regime}-{num}" for regime in REGIMES for num in workers]
    options, results = run_variants(__file__, arguments, variants)
    most, fewest = max(workers), min(workers)
    ratios = [Ratio("cpu_us_per_rollout", f"{regime}-{most}", f"{regime}-{fewest}") for regime in REGIMES]
    row = result_row("controller_workers", options | {"workers": workers}, results, ratios)
    emit(row, is_saved=arguments.save)


if __name__ == "__main__":
    main()
