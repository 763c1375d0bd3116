"""The learner's update on one device: time, memory, and which share of the device's peaks it reaches.

    python benchmarks/gpu_learner.py                            # Qwen3-0.6B from Qwen3-4B, on a GPU
    python benchmarks/gpu_learner.py --size tiny --device cpu   # the same code in seconds, anywhere

Random weights, random tokens: an update is the teacher's forward, the student's forward and backward, and an AdamW
step. Needs torch and transformers only. Variants alternate in this process:

    power        sampled-token PowerOPD by the learner's chunked head
    power_naive  the same from all logits, with log_softmax in float32
    full         full-vocabulary reverse KL, by the learner's chunked head
    full_naive   the same from two softmaxes over [tokens, vocabulary]

`flops_share` is useful arithmetic (a forward, a backward of twice that, nothing that is computed again) per second
over the device's peak. Of what memory bounds, the AdamW step and some decoding steps of the student,
`bandwidth_share` is the bytes that must be read and written per second over the peak. The row says where the peaks
are from. Prints one JSON row.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_peaks import Peaks, peaks_of, seconds_of
from benchmarks.gpu_update import SIZES, Update, timed
from benchmarks.rows import Ratio, Results, benchmark_parser, emit, result_row, spread

VARIANTS = ("power", "power_naive", "full", "full_naive")
STUDENT_PASSES, TEACHER_PASSES = 3, 1
"""A backward is twice a forward."""
ADAMW_TENSORS = 7
"""Parameter, gradient and two moments are read; all but the gradient are written."""
DECODE_STEPS = 16


def forward_flops(model: Any, *, num_tokens: int, num_targets: int) -> float:
    """Operations of one sequence: matrices of the layers, causal attention, and the head at its targets."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    embeddings = head if config.tie_word_embeddings else 2 * head
    body = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * body * num_tokens + 2.0 * width * num_tokens**2 + 2.0 * head * num_targets


def update_flops(update: Update) -> float:
    """Operations of one update that any implementation needs."""
    size = {"num_tokens": len(update.positions_N), "num_targets": len(update.sources_T)}
    student, teacher = forward_flops(update.student, **size), forward_flops(update.teacher, **size)
    return len(update.ids_BN) * (STUDENT_PASSES * student + TEACHER_PASSES * teacher)


def update_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of an update: models, device and shape, besides those of every benchmark."""
    parser = benchmark_parser(description)
    parser.add_argument("--size", choices=list(SIZES), default="qwen3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--head-chunk-tokens", type=_chunk, default="auto", help="positions, or auto")
    parser.add_argument("--activation-checkpointing", action="store_true")
    return parser


def measure_updates(
    update: Update, names: list[str], arguments: argparse.Namespace, peaks: Peaks
) -> dict[str, Any]:
    """By variant, what each counted run measured."""
    device, flops = torch.device(arguments.device), update_flops(update)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for index in range(arguments.warmup + arguments.runs):
        for name in names:
            seconds, peak_gib = timed(getattr(update, name), device)
            if index >= arguments.warmup:
                measured = {
                    "seconds": seconds,
                    "tokens_per_s": update.ids_BN.numel() / seconds,
                    "tflops": flops / seconds / 1e12,
                    "flops_share": flops / seconds / peaks.flops,
                }
                results[name].append(measured | ({"peak_gib": peak_gib} if peak_gib else {}))
    return results


def ratios_of(results: Results) -> list[Ratio]:
    """Seconds, and memory where it was measured, of the pairs whose two sides are among the variants."""
    keys = [key for key in ("seconds", "peak_gib") if all(key in runs[0] for runs in results.values())]
    pairs = [("power", "power_naive"), ("power", "full_naive"), ("full", "full_naive")]
    return [Ratio(key, *pair) for pair in pairs if {*pair} <= {*results} for key in keys]


def measure_optimizer(update: Update, arguments: argparse.Namespace, peaks: Peaks) -> dict[str, Any]:
    """The AdamW step alone."""
    parameters = list(update.student.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    num_bytes = ADAMW_TENSORS * sum(p.numel() * p.element_size() for p in parameters)
    found = _memory_bound(update.optimizer.step, num_bytes, arguments, peaks)
    update.optimizer.zero_grad(set_to_none=True)
    return found


@torch.no_grad()
def measure_decode(update: Update, arguments: argparse.Namespace, peaks: Peaks) -> dict[str, Any]:
    """DECODE_STEPS tokens for every sequence by transformers, after a whole prompt."""
    student, ids_BN = update.student.eval(), update.ids_BN[:, : arguments.prompt_tokens]
    config: Any = student.config
    cache = DynamicCache(config=config)
    student(ids_BN, past_key_values=cache, use_cache=True, logits_to_keep=1)
    item = next(student.parameters()).element_size()
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    context = arguments.prompt_tokens + DECODE_STEPS // 2
    num_bytes = item * (sum(p.numel() for p in student.parameters()) + len(ids_BN) * context * heads)

    def decode() -> None:
        for _ in range(DECODE_STEPS):
            student(ids_BN[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-DECODE_STEPS)

    found = _memory_bound(decode, num_bytes * DECODE_STEPS, arguments, peaks)
    student.train()
    return found


def _memory_bound(
    function: Callable[[], object], num_bytes: float, arguments: argparse.Namespace, peaks: Peaks
) -> dict[str, Any]:
    device = torch.device(arguments.device)
    for _ in range(max(arguments.warmup, 1)):
        function()
    seconds = [seconds_of(function, device) for _ in range(arguments.runs)]
    return {
        "seconds": spread(seconds),
        "bytes": num_bytes,
        "bandwidth_share": float(f"{num_bytes / statistics.median(seconds) / peaks.bandwidth:.4g}"),
    }


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, print one JSON row."""
    arguments = update_parser(__doc__).parse_args(argv)
    names: list[str] = [arguments.variant] if arguments.variant else [*VARIANTS]
    update, peaks = Update(arguments), peaks_of(torch.device(arguments.device), torch.bfloat16)
    results = measure_updates(update, names, arguments, peaks)
    row = result_row(
        "gpu_learner",
        vars(arguments),
        results,
        ratios_of(results),
        peaks={"tflops": peaks.flops / 1e12, "gb_per_s": peaks.bandwidth / 1e9, "source": peaks.source},
        update_tflop=update_flops(update) / 1e12,
        optimizer=measure_optimizer(update, arguments, peaks),
        decode=measure_decode(update, arguments, peaks),
    )
    emit(row, is_saved=arguments.save)


def _chunk(text: str) -> int | str:
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    main()
