"""Benchmarks run at a tiny size, and the GPU script needs nothing but torch and transformers."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_script_compares_both_updates_and_loads_no_distributed_library() -> None:
    program = (
        "import sys; sys.argv = ['gpu_table4.py', '--size=tiny', '--device=cpu', '--batch-size=1', "
        "'--prompt-tokens=4', '--response-tokens=8', '--runs=1']\n"
        "import runpy; runpy.run_path('benchmarks/gpu_table4.py', run_name='__main__')\n"
        "print([name for name in ('ray', 'vllm', 'deepspeed', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    row, loaded = done.stdout.strip().splitlines()
    assert json.loads(row)["seconds_ratio"] > 0
    assert "ray" not in loaded
    assert "vllm" not in loaded
    assert "deepspeed" not in loaded
    assert "pyarrow" not in loaded


def test_the_head_benchmark_reports_less_memory_for_the_chunked_head() -> None:
    line = [sys.executable, "benchmarks/log_prob_head.py", "--tokens=2048", "--vocabulary=32000", "--hidden=64"]
    done = subprocess.run([*line, "--runs=1"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ratios"]["memory_mib: chunked / naive"]["median"] < 0.6


def test_the_controller_benchmark_trains_every_rollout_once_and_reports_its_cost() -> None:
    line = [sys.executable, "benchmarks/controller.py", "--variant=local-4", "--rollouts=1024", "--batch_size=128"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert 0 < row["cpu_us_per_rollout"] < 1e6
    assert row["rollouts_per_s"] > 0
