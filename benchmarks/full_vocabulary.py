"""Peak memory and time of a learner step: sampled-token PowerOPD against full-vocabulary reverse KL.

    .venv/bin/python benchmarks/full_vocabulary.py --tokens 2048 --vocabulary 151936 --layers 2

The step is the student's forward, the loss and the backward, on random tokens in sequences of 512. The student has
the widths of Qwen3-0.6B and `--layers` layers, the teacher's head those of Qwen3-4B. Variants:

    power          PowerOPD: the teacher's log-probs are given, the student's come from the learner's chunked head
    power_kept     the same, and the head keeps all its logits from forward to backward (`learner.head_kept_gib`)
    full_chunked   exact reverse KL of this project: the teacher's head input is given, both heads work in chunks
    full_naive     reverse KL as trainers commonly do it: both softmaxes over [tokens, vocabulary] in float32

Each run is a process of its own; variants alternate, `--runs` times. Prints one JSON row: medians, and ratios to
full_naive.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.alternating import run_variants
from benchmarks.peak_memory import peak_mib, start_peak_mib
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row

VARIANTS = ("power", "power_kept", "full_chunked", "full_naive")
SEQUENCE_TOKENS, STUDENT_WIDTH, TEACHER_WIDTH = 512, 1024, 2560


def measure(variant: str, size: argparse.Namespace) -> dict[str, float]:
    """Take one step here; memory is what it adds to the process with its models, in MiB."""
    import torch

    torch.set_num_threads(size.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, size.dtype)
    kept_bytes = 2**40 if variant == "power_kept" else 0
    student = build_student(size.vocabulary, size.layers, dtype, kept_bytes=kept_bytes)
    teacher_VH = (0.02 * torch.randn(size.vocabulary, TEACHER_WIDTH)).to(dtype)
    hidden_NH = torch.randn(size.tokens, TEACHER_WIDTH).to(dtype)
    ids_N = torch.randint(size.vocabulary, (size.tokens,))
    positions_N = torch.arange(size.tokens) % SEQUENCE_TOKENS
    before = start_peak_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    loss = LOSSES[variant](student, ids_N, positions_N, teacher_VH, hidden_NH)
    loss.backward()
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    peak = peak_mib()
    return {"memory_mib": peak - before, "seconds": seconds, "cpu_s": cpu_s, "loss": loss.item()}


def build_student(vocabulary: int, layers: int, dtype: Any, *, kept_bytes: int = 0) -> Any:
    """Return a random student behind the learner's chunked head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from learner.log_probs import HeadLimits
    from learner.student import StudentModel

    config = Qwen3Config(
        hidden_size=STUDENT_WIDTH,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    return StudentModel(Qwen3ForCausalLM._from_config(config), HeadLimits(vocabulary, kept_bytes=kept_bytes))


def power_loss(student: Any, ids_N: Any, positions_N: Any, teacher_VH: Any, hidden_NH: Any) -> Any:
    """PowerOPD, with teacher log-probs as a teacher worker sends them."""
    import torch

    from rewards import TOKEN_REWARDS

    teacher_N = -torch.rand(len(ids_N))
    logp_N, _ = student(ids_N, positions_N, torch.arange(len(ids_N)), ids_N)[:2]
    reward_N = TOKEN_REWARDS["power"](teacher_N, logp_N.detach(), torch.ones_like(ids_N, dtype=torch.bool))
    return -(reward_N * logp_N).mean()


def chunked_loss(student: Any, ids_N: Any, positions_N: Any, teacher_VH: Any, hidden_NH: Any) -> Any:
    """Return the exact divergence; logits of both sides exist for one chunk at a time."""
    import torch

    from learner.divergence import TeacherHead
    from rewards import DIVERGENCES, TeacherLogits

    head = TeacherHead(teacher_VH)

    def value(logits_CV: Any, positions_C: Any) -> Any:
        return DIVERGENCES["reverse_kl"](logits_CV, TeacherLogits(head.logits(hidden_NH[positions_C])))

    return student(ids_N, positions_N, torch.arange(len(ids_N)), ids_N, value)[2].mean()


def naive_loss(student: Any, ids_N: Any, positions_N: Any, teacher_VH: Any, hidden_NH: Any) -> Any:
    """Return the divergence from two whole softmaxes."""
    import torch

    with torch.no_grad():
        teacher_NV = torch.nn.functional.linear(hidden_NH, teacher_VH).float().log_softmax(-1)
    logits_1NV = student.causal_lm(input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False).logits
    student_NV = logits_1NV[0].float().log_softmax(-1)
    return (student_NV.exp() * (student_NV - teacher_NV)).sum(-1).mean()


LOSSES = {"power": power_loss, "power_kept": power_loss, "full_chunked": chunked_loss, "full_naive": naive_loss}


def main() -> None:
    """Compare the variants, or measure one (`--variant`) for the parent process."""
    parser = benchmark_parser(__doc__, warmup=0)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments)))
        return
    settings, results = run_variants(__file__, arguments, VARIANTS)
    keys = ("memory_mib", "seconds", "cpu_s")
    ratios = [Ratio(key, name, "full_naive") for key in keys for name in VARIANTS[:-1]]
    emit(result_row("full_vocabulary", settings, results, ratios), is_saved=arguments.save)


if __name__ == "__main__":
    main()
