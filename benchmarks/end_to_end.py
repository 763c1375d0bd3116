"""A whole run with real engines on the workload of `workload.py`: seconds, CPU seconds and memory per step.

    .venv/bin/python benchmarks/end_to_end.py --dtype float32 --runs 5               # asynchronous and synchronous
    .venv/bin/python benchmarks/end_to_end.py --variant ours-async --dtype bfloat16    # one run, here and now

A run is `launch.py train` in a process of its own, with student engine, teacher engine and learner in separate
processes on the machine's cores. Work per step is constant. The first `--skip` steps are not counted, nor the last
`--after`: an asynchronous run generates ahead, for steps that its last ones do not have. A step's time is the mean
over the others (asynchronous steps come in pairs, so single steps say little). CPU seconds are those of all
processes of the run together, memory is the peak of each role's process.

Samples and evaluations are switched off: the peers do none of that.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import run_variants  # noqa: E402
from benchmarks.process_tree import watched_run  # noqa: E402
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402
from benchmarks.workload import Workload, make  # noqa: E402

VARIANTS = {
    "ours-async": {"max_staleness": 4, "batches_ahead": 2},
    "ours-sync": {"max_staleness": 0, "batches_ahead": 0},
}
ROLES: tuple[str, ...] = ("rollout", "teacher", "learner")
WAITS = ("time/rollout_wait_s", "time/score_wait_s", "time/train_s", "time/publish_s")


def settings(
    workload: Workload,
    variant: str,
    dtype: str,
    threads: dict[str, int],
    *,
    steps: int,
    micro_batch_tokens: int,
) -> dict[str, Any]:
    """The configuration of a run as dotted keys."""
    engine = {"max_model_len": workload.sequence_tokens + 8, "kv_cache_gib": 1.0}
    found: dict[str, Any] = {
        **VARIANTS[variant],
        "max_steps": steps,
        "batch_size": workload.batch_size,
        "student.model_path": workload.student,
        "teacher.model_path": workload.teacher,
        "data.train_path": workload.prompts,
        "objective.name": "power",
        "objective.alpha": workload.alpha,
        "rollout.max_response_tokens": workload.response_tokens,
        "rollout.top_p": workload.top_p,
        "rollout.top_k": workload.top_k,
        "learner.dtype": dtype,
        "learner.micro_batch_tokens": micro_batch_tokens,
        "learner.learning_rate": workload.learning_rate,
        "checkpoint.every_steps": 0,
        "logging.samples": 0,
        "logging.display": "plain",
        "cluster.object_store_gib": 0.5,
    }
    for role in ROLES:
        found[f"{role}.resources.num_cpus"] = 0.5
        found[f"{role}.num_threads" if role == "learner" else f"{role}.engine.num_threads"] = threads[role]
        if role != "learner":
            found |= {f"{role}.engine.{key}": value for key, value in engine.items()}
    return found


def run(workload: Workload, variant: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One run: its numbers per step."""
    threads = dict(zip(ROLES, map(int, arguments.threads.split(",")), strict=True))
    end = arguments.skip + arguments.steps
    steps = end + (arguments.after if variant == "ours-async" else 0)
    sizes = {"steps": steps, "micro_batch_tokens": arguments.micro_batch_tokens}
    options = settings(workload, variant, arguments.dtype, threads, **sizes)
    further = dict(option.split("=", 1) for option in arguments.set or ())
    folder = Path(tempfile.mkdtemp(prefix="poweropd-end-to-end-"))
    command = [sys.executable, "launch.py", "train", "--run-name", variant, "--runs-path", str(folder)]
    for key, value in (options | further).items():
        command += [f"--{key}", str(value)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    samples = watched_run(command, folder / variant, folder / "log", every_s=0.25, timeout_s=arguments.timeout_s)
    rows = [json.loads(line) for line in (folder / variant / "metrics.jsonl").read_text().splitlines()]
    counted = rows[arguments.skip : end]
    lengths = {row["response_length/mean"] for row in counted}
    assert lengths == {float(workload.response_tokens)}, f"responses ended early: {lengths}"
    seconds = (counted[-1]["time_s"] - rows[arguments.skip - 1]["time_s"]) / len(counted)
    shutil.rmtree(folder)
    first = next(each for each in samples if each.step >= arguments.skip)
    last = next(each for each in samples if each.step >= end)
    num = last.step - first.step
    found = {
        "seconds_per_step": seconds,
        "cpu_s_per_step": (last.cpu_s - first.cpu_s) / num,
        "tokens_per_s": workload.batch_size * workload.response_tokens / seconds,
    }
    for role in ROLES:
        found[f"{role}_peak_mib"] = last.peak_mib[role]
        found[f"{role}_cpu_s_per_step"] = (last.cpu_s_of_role[role] - first.cpu_s_of_role[role]) / num
    return {
        **found,
        **{key: sum(row[key] for row in counted) / len(counted) for key in WAITS},
        "staleness_mean": sum(row["staleness/mean"] for row in counted) / len(counted),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    parser.add_argument("--models", choices=("qwen3", "smollm2"), default="qwen3")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a run")
    parser.add_argument("--skip", type=int, default=4, help="steps before, not counted")
    parser.add_argument("--after", type=int, default=3, help="steps after, not counted, of asynchronous runs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", default="1,1,1", help="of rollout engine, teacher engine, learner")
    parser.add_argument("--timeout-s", type=float, default=1500)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--micro-batch-tokens", type=int, default=2560, help="of the learner")


def main() -> None:
    """Run both variants in turn, or one (`--variant`) here."""
    parser = benchmark_parser(__doc__, warmup=0)
    add_options(parser)
    arguments = parser.parse_args()
    workload = make(arguments.models, batch_size=arguments.batch_size)
    if arguments.variant is not None:
        print(json.dumps(run(workload, arguments.variant, arguments)))
        return
    options, results = run_variants(__file__, arguments, list(VARIANTS))
    ratio = Ratio("seconds_per_step", "ours-async", "ours-sync")
    emit(result_row("end_to_end", options, results, [ratio]), is_saved=arguments.save)


if __name__ == "__main__":
    main()
