"""A whole run on one device, with vLLM, DeepSpeed and Ray: tokens per second, where time goes, share of the peak.

    python benchmarks/gpu_end_to_end.py --size 0.6b_from_4b       # one GPU of 80 GiB
    python benchmarks/gpu_end_to_end.py --size tiny --device cpu  # the same in a minute, anywhere

Makes random models of a Qwen3 architecture, a tokenizer of words and prompts, and runs `launch.py train` on them,
with the settings of `configs/parts/one_gpu.yaml` on a GPU. Every response has `--response-tokens` tokens, because
the logit of the stop token is 0 and top-k leaves it out. `--runs` steps are counted, after `--warmup` others and
before three more: the last steps of a run are faster, since nothing is generated for later ones.

`tflops` counts 2 operations per parameter and token for sampling and scoring and 6 for training, without
attention: `flops_share`, its share of the peak, is a lower bound. Prints one JSON row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import benchmark_parser, emit, result_row
from benchmarks.workload import Workload, write_prompts, write_qwen3

ROOT = Path(__file__).resolve().parents[1]
ONE_GPU = ROOT / "configs" / "parts" / "one_gpu.yaml"
AFTER = 3
"""Steps at the end that are not counted."""
SHAPES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "tiny-student": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "tiny-teacher": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    },
}
LARGE = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
TINY = {"vocab_size": 512, "num_key_value_heads": 1, "head_dim": 32}
SIZES = {
    "0.6b_from_4b": ("0.6b", "4b", LARGE),
    "1.7b_from_4b": ("1.7b", "4b", LARGE),
    "tiny": ("tiny-student", "tiny-teacher", TINY),
}
TIMES = (
    "time/step_s",
    "time/rollout_wait_s",
    "time/score_wait_s",
    "time/train_s",
    "time/publish_s",
    "time/update_s",
)
"""Of each step: all of it, and its parts in the learner's loop; `update` runs in the engines beside it."""


def make_workload(folder: Path, arguments: argparse.Namespace) -> dict[str, int]:
    """Write both models and the prompts; returns the number of parameters of `student` and `teacher`."""
    student, teacher, shared = SIZES[arguments.size]
    longest = arguments.prompt_tokens + arguments.response_tokens + 8
    sizes = {}
    for seed, (role, shape) in enumerate((("student", student), ("teacher", teacher))):
        config = {**shared, **SHAPES[shape], "max_position_embeddings": longest}
        sizes[role] = write_qwen3(folder / role, seed=seed, **config)
    workload = Workload(folder, prompt_tokens=arguments.prompt_tokens)
    write_prompts(workload, vocabulary=shared["vocab_size"])
    return sizes


def settings_of(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the run, without what `one_gpu.yaml` says."""
    longest = arguments.prompt_tokens + arguments.response_tokens
    is_cpu = arguments.device == "cpu"
    engine = {"max_model_len": longest + 8} | ({"kv_cache_gib": 0.25} if is_cpu else {})
    role: dict[str, Any] = {"engine": engine} | ({"resources": {"num_cpus": 0.5}} if is_cpu else {})
    settings: dict[str, Any] = {
        "run_name": "end_to_end",
        "runs_path": str(folder / "runs"),
        "max_steps": arguments.warmup + arguments.runs + AFTER,
        "batch_size": arguments.batch_size,
        "max_staleness": arguments.max_staleness,
        "student": {"model_path": str(folder / "student")},
        "teacher": {"model_path": str(folder / "teacher"), **role},
        "data": {"train_path": str(folder / "prompts.jsonl")},
        "objective": {"name": "power", "stop_mode": "raw"},
        "rollout": {"max_response_tokens": arguments.response_tokens, "top_k": 20, **role},
        "learner": {"micro_batch_tokens": arguments.micro_batch_tokens, "activation_checkpointing": not is_cpu},
        "checkpoint": {"every_steps": 10**6},
    }
    if is_cpu:
        settings["learner"] |= {"resources": {"num_cpus": 0.5}, "dtype": "float32"}
        settings["cluster"] = {"object_store_gib": 0.25}
        return settings
    return settings | {"extends": str(ONE_GPU)}


def run(folder: Path, settings: dict[str, Any], *, timeout_s: float) -> list[dict[str, float]]:
    """Train; returns the metrics of every step. RuntimeError with the end of its output if the run fails."""
    config = folder / "run.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"launch.py train ended with {done.returncode}: {(done.stdout + done.stderr)[-4000:]}")
    metrics = folder / "runs" / settings["run_name"] / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def measured(rows: list[dict[str, float]], arguments: argparse.Namespace, sizes: dict[str, int]) -> dict[str, Any]:
    """What each counted step did. A step lasts from the end of the one before to its own."""
    tokens = arguments.batch_size * (arguments.prompt_tokens + arguments.response_tokens)
    flops = tokens * (2 * sizes["student"] + 2 * sizes["teacher"] + 6 * sizes["student"])
    found = []
    for before, row in pairwise(rows[arguments.warmup - 1 : arguments.warmup + arguments.runs]):
        seconds = row["time_s"] - before["time_s"]
        split = {key.removeprefix("time/"): row[key] for key in TIMES}
        rates = {"tokens_per_s": tokens / seconds, "tflops": flops / seconds / 1e12}
        found.append({"seconds": seconds, **rates, **split})
    return {"run": found}


def peak(arguments: argparse.Namespace) -> dict[str, Any]:
    """The device's, found out in a process of its own: this one must not hold the GPU while the run does."""
    program = (
        "import sys, json, torch; sys.path.insert(0, sys.argv[1]); from benchmarks.gpu_peaks import peaks_of\n"
        "peaks = peaks_of(torch.device(sys.argv[2]), getattr(torch, sys.argv[3]))\n"
        "print(json.dumps({'tflops': peaks.flops / 1e12, 'source': peaks.source}))"
    )
    dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    command = [sys.executable, "-c", program, str(ROOT), arguments.device, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def main(argv: list[str] | None = None) -> None:
    """Make the models, run, print one JSON row."""
    parser = benchmark_parser(__doc__, runs=10, warmup=3)
    parser.add_argument("--size", choices=list(SIZES), default="0.6b_from_4b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=3600, help="of the run")
    arguments = parser.parse_args(argv)
    if arguments.warmup < 1:
        parser.error("--warmup must be >= 1: the first step includes the start")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    best = peak(arguments)
    with tempfile.TemporaryDirectory() as name:
        sizes = make_workload(Path(name), arguments)
        rows = run(Path(name), settings_of(Path(name), arguments), timeout_s=arguments.timeout_s)
    results = measured(rows, arguments, sizes)
    for step in results["run"]:
        step["flops_share"] = step["tflops"] / best["tflops"]
    emit(
        result_row("gpu_end_to_end", vars(arguments), results, parameters=sizes, peak=best),
        is_saved=arguments.save,
    )


if __name__ == "__main__":
    main()
