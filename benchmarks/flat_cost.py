"""Whether a run's cost per trained token and its memory stay flat: over its steps, and with larger batches.

    .venv/bin/python examples/arithmetic/problems.py --out examples/arithmetic/data
    .venv/bin/python benchmarks/flat_cost.py --steps 1000           # the last 50 steps against earlier ones
    .venv/bin/python benchmarks/flat_cost.py --batch-steps 120      # 32 against 512 prompts per step
    .venv/bin/python benchmarks/flat_cost.py --workload-steps 4     # the same with the models of workload.py

Real runs of configs/demo.yaml with real engines, Ray and DeepSpeed, whose processes are watched from outside.
The learning rate is 0, so that weights, and with them the lengths of responses, stay as they are; everything else,
publishing and loading weights too, is done at every step. The last steps of a run are in no window: nothing is
generated for later ones while they train. A step of the demo is of a few thousand tokens, so that what every step
costs however large it is shows between its batch sizes; the workload's models are nearer to what steps are for.

CPU seconds are those of all processes of a run, memory is that of the driver, of each role's workers and of the
rest (Ray), as the mean resident MiB in a window.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.end_to_end import ROLES, add_options, run  # noqa: E402
from benchmarks.process_tree import Sample, watched_run, window_of  # noqa: E402
from benchmarks.rows import Ratio, Results, benchmark_parser, emit, result_row  # noqa: E402
from benchmarks.workload import make  # noqa: E402

EARLY, SETTLED = (10, 60), (300, 350)
"""Windows of steps. Engines touch their caches for the first time until about step 250, so that their memory is
compared from SETTLED on."""
WARM_UP = 10
"""Steps in which engines, caches and the object store fill."""
AFTER = 5
"""Steps at the end of a run, for which the batches are there already."""
BATCHES = (32, 512)
EVERY_S = 1.0
TIMEOUT_S = 7200.0


def windows(steps: int) -> dict[str, tuple[int, int]]:
    """The windows of steps that are compared; of a short run its second and its last quarter."""
    if steps < 2 * EARLY[1]:
        return {"early": (steps // 4, steps // 2), "late": (3 * steps // 4, steps)}
    settled = {"settled": SETTLED} if steps >= 2 * SETTLED[1] else {}
    return {"early": EARLY, **settled, "late": (steps - (EARLY[1] - EARLY[0]), steps)}


def workload_batch(batch_size: int, steps: int) -> dict[str, float]:
    """CPU cost per trained token and memory of a run of the workload in bfloat16 with so many prompts per step."""
    arguments = argparse.ArgumentParser()
    add_options(arguments)
    sizes = [f"--batch-size={batch_size}", f"--steps={steps}", "--skip=2", "--dtype=bfloat16", "--timeout-s=3600"]
    workload = make("qwen3", batch_size=batch_size)
    found = run(workload, "ours-async", arguments.parse_args(sizes))
    tokens = batch_size * workload.response_tokens
    memory = {f"{role}_mib": found[f"{role}_peak_mib"] for role in ROLES}
    return {"cpu_us_per_token": 1e6 * found["cpu_s_per_step"] / tokens, "tokens_per_step": tokens, **memory}


def demo(steps: int, batch_size: int, path: Path) -> list[Sample]:
    """Run the demo for so many steps and return what was seen of its processes; RuntimeError if it fails."""
    name = f"flat-{batch_size}"
    line, folder = command(name, steps + AFTER, batch_size, path), path / "runs" / name
    return watched_run(line, folder, path / f"{name}.log", every_s=EVERY_S, timeout_s=TIMEOUT_S)


def command(name: str, steps: int, batch_size: int, path: Path) -> list[str]:
    """The run: nothing but training, with weights that stay as they are."""
    settings = {
        **{"max_steps": steps, "batch_size": batch_size, "learner.learning_rate": 0.0, "learner.warmup_steps": 0},
        **{"learner.lr_schedule": "constant", "learner.weight_decay": 0.0, "checkpoint.every_steps": 0},
        **{"evaluation.every_steps": 0, "evaluation.num_samples": 1, "evaluation.k": 1},
        **{"evaluation.teacher": "false", "evaluation.max_problems": 8, "runs_path": str(path / "runs")},
    }
    line = [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", "--run-name", name]
    return [*line, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def measure(steps: int, batch_steps: int, workload_steps: int, path: Path) -> dict[str, dict[str, float]]:
    """By variant: the windows of one long run, and a run for each batch size of the demo and of the workload."""
    found: dict[str, dict[str, float]] = {}
    if steps:
        samples = demo(steps, 128, path)
        for name, window in windows(steps).items():
            found[name] = window_of(samples, *window)
    for batch_size in BATCHES if workload_steps else ():
        num = workload_steps * (1 if batch_size == max(BATCHES) else 3)
        found[f"workload-{batch_size}"] = workload_batch(batch_size, num)
    if batch_steps:
        for batch_size in BATCHES:
            num = batch_steps if batch_size == max(BATCHES) else 4 * batch_steps
            found[f"batch-{batch_size}"] = window_of(demo(num, batch_size, path), WARM_UP, num)
    return found


def main() -> None:
    """Measure `--runs` times and compare."""
    parser = benchmark_parser(__doc__, runs=1, warmup=0)
    parser.add_argument("--steps", type=int, default=0, help="of the long run, 128 prompts each; 0: none")
    parser.add_argument(
        "--batch-steps", type=int, default=0, help=f"of the run with {max(BATCHES)} prompts; 0: none"
    )
    parser.add_argument(
        "--workload-steps", type=int, default=0, help=f"with {max(BATCHES)} prompts of the workload; 0: none"
    )
    arguments = parser.parse_args()
    if not (arguments.steps or arguments.batch_steps or arguments.workload_steps):
        parser.error("give --steps, --batch-steps or --workload-steps")
    if (arguments.steps or arguments.batch_steps) and not (
        ROOT / "examples" / "arithmetic" / "data" / "train.jsonl"
    ).is_file():
        parser.error("examples/arithmetic/data is missing: the first command above makes it")
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(arguments.warmup + arguments.runs):
        with tempfile.TemporaryDirectory() as path:
            rounds.append(measure(arguments.steps, arguments.batch_steps, arguments.workload_steps, Path(path)))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    counted = rounds[arguments.warmup :]
    results: Results = {name: [each[name] for each in counted] for name in counted[0]}
    emit(result_row("flat_cost", vars(arguments), results, ratios(results)), is_saved=arguments.save)


def ratios(results: Results) -> list[Ratio]:
    """Late over early, and the large batch over the small one: cost per token, and memory by role."""
    found: list[Ratio] = []
    if "late" in results:
        keys = ["cpu_us_per_token", *(key for key in results["late"][0] if key.endswith("_mib"))]
        for name in [name for name in ("early", "settled") if name in results]:
            found += [Ratio(key, "late", name) for key in keys]
    for name in ("batch", "workload"):
        if f"{name}-512" in results:
            found.append(Ratio("cpu_us_per_token", f"{name}-512", f"{name}-32"))
    return found


if __name__ == "__main__":
    main()
