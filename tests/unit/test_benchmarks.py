"""Benchmarks run at a tiny size, and the GPU scripts need nothing but torch and transformers."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_end_to_end import settings_of
from benchmarks.gpu_learner import forward_flops
from benchmarks.gpu_update import Update
from commands.plan.data_sheets import DEVICES, device_named
from settings.run_files import load_config

ROOT = Path(__file__).resolve().parents[2]


TINY = ["--size=tiny", "--device=cpu", "--batch-size=1", "--prompt-tokens=4", "--response-tokens=8", "--runs=1"]


def run_without_distributed_libraries(script: str) -> dict[str, Any]:
    """Run a GPU script at a tiny size; returns its row, once it is clear that it has loaded none of them."""
    program = (
        f"import sys; sys.argv = [{script!r}, *{TINY!r}]\n"
        f"import runpy; runpy.run_path({script!r}, run_name='__main__')\n"
        "print([name for name in ('ray', 'vllm', 'deepspeed', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    row, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    return json.loads(row)


@pytest.mark.slow
def test_the_gpu_script_compares_both_updates_and_loads_no_distributed_library() -> None:
    row = run_without_distributed_libraries("benchmarks/gpu_table4.py")
    assert set(row["variants"]) == {"power", "full_naive"}
    assert row["ratios"]["seconds: power / full_naive"]["median"] > 0


@pytest.mark.slow
def test_the_gpu_learner_reports_shares_of_a_measured_peak_and_loads_no_distributed_library() -> None:
    row = run_without_distributed_libraries("benchmarks/gpu_learner.py")
    assert set(row["variants"]) == {"power", "power_naive", "full", "full_naive"}
    assert row["peaks"]["source"] == "measured"
    for variant in row["variants"].values():
        share = row["update_tflop"] / variant["seconds"]["median"] / row["peaks"]["tflops"]
        assert variant["flops_share"]["median"] == pytest.approx(share, rel=1e-3)
    assert row["optimizer"]["bandwidth_share"] > 0
    assert row["decode"]["bandwidth_share"] > 0


def test_chunked_and_naive_updates_of_the_gpu_scripts_have_the_same_loss_and_gradient() -> None:
    size = {"size": "tiny", "device": "cpu", "batch_size": 1, "prompt_tokens": 4, "response_tokens": 8}
    update = Update(argparse.Namespace(**size, activation_checkpointing=False, head_chunk_tokens=3))
    update.student.float()
    update.teacher.float()
    parameters, ids_N = list(update.student.parameters()), update.ids_BN[0]
    for chunked, naive in (
        (update._power_loss, update._power_naive_loss),
        (update._chunked_full_loss, update._full_loss),
    ):
        losses = [chunked(ids_N), naive(ids_N)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)
        gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
        for left, right in zip(*gradients, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_operations_of_an_update_are_those_counted_by_hand() -> None:
    config = Qwen3Config(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=True,
    )
    matrices = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12
    norms = 2 * 8 + 2 * 4 + 8  # counted as matrices: too small to matter
    expected = 2 * (matrices + norms) * 5 + 2 * 8 * 5**2 + 2 * 80 * 3
    assert forward_flops(Qwen3ForCausalLM(config), num_tokens=5, num_targets=3) == expected


def test_devices_are_known_by_the_drivers_name_of_them() -> None:
    assert device_named("NVIDIA H100 80GB HBM3") == DEVICES["h100"]
    assert device_named("NVIDIA A100-SXM4-40GB") == DEVICES["a100-40gb"]
    assert device_named("NVIDIA L40S") == DEVICES["l40s"]
    assert device_named("NVIDIA L4") == DEVICES["l4"]
    assert device_named("NVIDIA H200") == DEVICES["h200"]
    assert device_named("NVIDIA H100 PCIe") is None


def test_the_end_to_end_script_makes_a_valid_configuration_for_one_gpu(tmp_path: Path) -> None:
    size = {"batch_size": 64, "prompt_tokens": 128, "response_tokens": 512, "micro_batch_tokens": 4096}
    steps = {"warmup": 3, "runs": 10, "max_staleness": 1}
    settings = settings_of(tmp_path, argparse.Namespace(device="cuda", **size, **steps))
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    config = load_config(str(tmp_path / "run.yaml"))
    assert config.max_steps == 16
    assert config.rollout.resources.num_gpus + config.teacher.resources.num_gpus < 1
    assert config.rollout.engine.max_model_len == 648


@pytest.mark.slow
def test_the_learner_benchmark_counts_memory_above_parameters_and_optimizer() -> None:
    sizes = [
        "--vocabulary=512",
        "--hidden=128",
        "--layers=1",
        "--sequences=2",
        "--sequence-tokens=32",
        "--steps=1",
    ]
    line = [sys.executable, "benchmarks/learner.py", *sizes, "--runs=1", "--warmup=0", "--variants=naive,plain"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])  # DeepSpeed says there that it found no GPU
    assert set(row["variants"]) == {"naive", "plain"}
    assert row["ratios"]["seconds: plain / naive"]["median"] > 0
    for variant in row["variants"].values():
        assert 0 < variant["added_mib"]["median"] < variant["peak_mib"]["median"]


def test_the_controller_benchmark_trains_every_rollout_once_and_reports_its_cost() -> None:
    line = [sys.executable, "benchmarks/controller.py", "--variant=local-4", "--rollouts=1024", "--batch_size=128"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert 0 < row["cpu_us_per_rollout"] < 1e6
    assert row["rollouts_per_s"] > 0
