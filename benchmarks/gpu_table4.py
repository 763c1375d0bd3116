"""Learner update of PowerOPD against full-vocabulary OPD: time and peak memory, as in Table 4 of arXiv 2606.17199.

    python benchmarks/gpu_table4.py                          # Qwen3-0.6B from Qwen3-4B, batch 8, on a GPU
    python benchmarks/gpu_table4.py --size tiny --device cpu # the same code in seconds, anywhere

Random weights in the two architectures, random tokens: an update is the teacher's forward, the student's forward
and backward, and an AdamW step. Needs torch and transformers only. Variants:

    power        teacher and student log-probs of the sampled tokens by the learner's chunked head
    full_naive   both full softmaxes over [tokens, vocabulary], reverse KL, the way trainers commonly do it

Variants alternate; medians over `--runs` after one warm-up each; prints one JSON row with the ratios.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from learner.log_probs import HeadLimits
from learner.student import StudentModel
from rewards import TOKEN_REWARDS

SIZES = {
    "qwen3": {
        "student": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        "teacher": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
        "shared": {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128},
    },
    "tiny": {
        "student": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "teacher": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2},
        "shared": {"vocab_size": 4096, "num_key_value_heads": 1, "head_dim": 32},
    },
}


def build(size: str, role: str, device: torch.device) -> Qwen3ForCausalLM:
    """Return a random bfloat16 model of one of the architectures."""
    settings: dict[str, Any] = {**SIZES[size]["shared"], **SIZES[size][role]}
    config = Qwen3Config(**settings, tie_word_embeddings=True, use_cache=False, dtype=torch.bfloat16)
    with torch.device(device):
        return Qwen3ForCausalLM._from_config(config)


class Update:
    """One learner update on a batch of B sequences of P prompt and T response tokens."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        device = torch.device(arguments.device)
        self.prompt = arguments.prompt_tokens
        self.student = build(arguments.size, "student", device).train()
        self.teacher = build(arguments.size, "teacher", device).eval().requires_grad_(False)
        if arguments.activation_checkpointing:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-6, weight_decay=0.0)
        vocabulary = SIZES[arguments.size]["shared"]["vocab_size"]
        shape = (arguments.batch_size, arguments.prompt_tokens + arguments.response_tokens)
        self.ids_BN = torch.randint(vocabulary, shape, device=device)
        limits = HeadLimits(vocabulary, chunk_tokens=arguments.head_chunk_tokens)
        self.student_head = StudentModel(self.student, limits)
        self.teacher_head = StudentModel(self.teacher, limits)
        num_tokens = shape[1] - 1
        self.positions_N = torch.arange(num_tokens, device=device)
        self.sources_T = self.positions_N[self.prompt - 1 :]

    def power(self) -> None:
        """PowerOPD, one sequence at a time: sampled-token log-probs of both sides."""
        self._each_sequence(self._power_loss)

    def full_naive(self) -> None:
        """Full-vocabulary reverse KL, one sequence at a time: both softmaxes in float32."""
        self._each_sequence(self._full_loss)

    def _each_sequence(self, loss_of: Callable[[Tensor], Tensor]) -> None:
        for ids_N in self.ids_BN:
            (loss_of(ids_N) / self.ids_BN.shape[0]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _power_loss(self, ids_N: Tensor) -> Tensor:
        inputs = (ids_N[:-1], self.positions_N, self.sources_T, ids_N[self.prompt :])
        with torch.no_grad():
            teacher_T, _ = self.teacher_head(*inputs)
        logp_T, _ = self.student_head(*inputs)
        mask_T = torch.ones_like(logp_T, dtype=torch.bool)
        return -(TOKEN_REWARDS["power"](teacher_T, logp_T.detach(), mask_T, alpha=5.0) * logp_T).mean()

    def _full_loss(self, ids_N: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_TV = self.teacher(ids_N[None, :-1]).logits[0, self.sources_T].float().log_softmax(-1)
        student_TV = self.student(ids_N[None, :-1]).logits[0, self.sources_T].float().log_softmax(-1)
        return (student_TV.exp() * (student_TV - teacher_TV)).sum(-1).mean()


def timed(update: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return (seconds, peak GiB allocated on the device; 0 on CPUs) of one update."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    update()
    if is_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0.0


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Run both variants alternately; medians, and PowerOPD's share of the full-vocabulary update."""
    update, device = Update(arguments), torch.device(arguments.device)
    variants = {"power": update.power, "full_naive": update.full_naive}
    for variant in variants.values():
        timed(variant, device)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(arguments.runs):
        for name, variant in variants.items():
            measured[name].append(timed(variant, device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    row: dict[str, object] = {**vars(arguments), "hardware": name, "torch": torch.__version__}
    for index, key in enumerate(("seconds", "peak_gib")):
        medians = {name: statistics.median(run[index] for run in runs) for name, runs in measured.items()}
        row |= {f"{name}_{key}": round(value, 4) for name, value in medians.items()}
        if medians["full_naive"]:
            row[f"{key}_ratio"] = round(medians["power"] / medians["full_naive"], 3)
    return row


def main(argv: list[str] | None = None) -> None:
    """Parse, compare, print one JSON row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="qwen3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--head-chunk-tokens", type=int, default=1024)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    print(json.dumps(compare(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
