"""What the controller costs per rollout: admission, dispatch, scoring calls, batches, weight versions, ledger.

    .venv/bin/python benchmarks/controller.py --rollouts 81920

Workers have no models and hardly take time (`commands/plan/`); everything else is what real runs use.
Variants, each in a process of its own, alternating: `local-4` and `local-256` have so many workers inside the
process (half of them teachers), `ray-8` has 4 of each as Ray actors. Measured are rollouts per second, CPU
microseconds (with Ray of all its processes too) per rollout, and growth of resident memory from a fifth of the run
to its end, in MiB.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers

from benchmarks.alternating import run_variants  # noqa: E402
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402

VARIANTS = ("local-4", "local-256", "ray-8")
RATIOS = (
    Ratio("cpu_us_per_rollout", "local-256", "local-4"),
    Ratio("rollouts_per_s", "ray-8", "local-4", better="higher"),
)


def measure(variant: str, rollouts: int, batch_size: int) -> dict[str, float]:
    """Run one variant here."""
    from cluster.connection import connected, prepare_environment
    from settings.cluster import ClusterConfig

    prepare_environment()
    kind, _, num_workers = variant.partition("-")
    if kind == "local":
        return asyncio.run(_run(int(num_workers), rollouts, batch_size, with_ray=False))
    with connected(ClusterConfig(num_cpus=16, object_store_gib=0.2), lambda nodes, is_local: None):
        return asyncio.run(_run(int(num_workers), rollouts, batch_size, with_ray=True))


async def _run(num_workers: int, rollouts: int, batch_size: int, *, with_ray: bool) -> dict[str, float]:
    from cluster.pool import Pool
    from commands.plan.local_pool import LocalPool
    from commands.plan.run import simulated_run

    process, sizes = psutil.Process(), list[float]()
    with tempfile.TemporaryDirectory() as path:
        config, rates = _settings(num_workers, rollouts, batch_size)
        pool_class = Pool if with_ray else LocalPool
        async with simulated_run(config, rates, Path(path), pool_class=pool_class) as run:
            run.pipeline.on_step(lambda row: sizes.append(process.memory_info().rss / 2**20))
            start, cpu_start = time.perf_counter(), _cpu_s(process)
            await run.pipeline.run()
            seconds, cpu_s = time.perf_counter() - start, _cpu_s(process) - cpu_start
            trained = config.max_steps * batch_size
            uids = {uid for line in run.folder.ledger.open() for uid in json.loads(line)["uids"]}
            assert len(uids) == trained, "the ledger must hold every slot once"
    return {
        "rollouts_per_s": trained / seconds,
        "cpu_us_per_rollout": 1e6 * cpu_s / trained,
        "memory_growth_mib": sizes[-1] - sizes[len(sizes) // 5],
    }


def _settings(num_workers: int, rollouts: int, batch_size: int) -> tuple[Any, Any]:
    from commands.plan.prompts import LengthsConfig
    from commands.plan.run import RatesConfig
    from commands.plan.timing import EngineRates
    from commands.plan.workers import LearnerRates
    from settings.run import RunConfig

    pool = {"num_workers": num_workers // 2, "resources": {"num_cpus": 0.01}}
    config = RunConfig.model_validate(
        {
            **{"run_name": "controller", "batch_size": batch_size, "max_steps": rollouts // batch_size},
            **{"max_staleness": 8, "batches_ahead": 2, "student": {"model_path": "simulated"}},
            **{"data": {"train_path": "simulated"}, "evaluation": {"teacher": False}},
            **{"rollout": pool, "teacher": pool | {"model_path": "simulated"}, "checkpoint": {"every_steps": 0}},
            **{"learner": {"resources": {"num_cpus": 0.01}}, "logging": {"tensorboard": False}},
        }
    )
    engine = EngineRates(step_s=1e-6, sequence_s=0, max_num_seqs=1024, prefill_tokens_per_s=1e9, load_s=0)
    learner = LearnerRates(step_s=0, tokens_per_s=1e12, publish_s=0)
    lengths = LengthsConfig(prompt=100, median=300, spread=1.0)
    return config, RatesConfig(rollout=engine, teacher=engine, learner=learner, lengths=lengths)


def _cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its live descendants."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
        total += times.user + times.system
    return total


def main() -> None:
    """Compare all variants, or measure one (`--variant`) for the parent process."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rollouts", type=int, default=81_920)
    parser.add_argument("--batch-size", "--batch_size", type=int, default=4096, help="rollouts per step")
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments.rollouts, arguments.batch_size)))
        return
    options, results = run_variants(__file__, arguments, VARIANTS)
    emit(result_row("controller", options, results, RATIOS), is_saved=arguments.save)


if __name__ == "__main__":
    main()
