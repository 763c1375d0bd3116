"""The learner's update against a naive one: tokens per second and peak memory.

    .venv/bin/python benchmarks/learner.py                      # one small case, about a minute
    .venv/bin/python benchmarks/learner.py --set lengths        # 256, 1,024 and 4,096 tokens
    .venv/bin/python benchmarks/learner.py --set vocabularies   # 4,096, 32,000 and 151,936 ids
    .venv/bin/python benchmarks/learner.py --set zero           # ZeRO 1 to 3, one and two ranks, and no DeepSpeed

An update is one optimizer step on `--sequences` scored rollouts of random tokens, through the code of a learner
rank: collation, micro-batches, loss, backward, clipping, AdamW with float32 weights. Variants, in processes of
their own:

    naive            padded batch, all logits, log_softmax in float32, autograd, torch's AdamW
    zero0 .. zero3   the learner, one rank, sequences packed into micro-batches; zero0 with --dtype float32
    single           as zero2, one sequence at a time
    plain            the learner's packing, head and loss, with torch's AdamW in place of DeepSpeed
    zero2x2, zero3x2 two ranks; time and memory are the first one's

`peak_mib` is the most the process holds in a step. `added_mib` is what is left of it without libraries,
parameters, float32 weights and AdamW's two moments: activations and gradients. Prints one JSON row per case.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.alternating import run_variants
from benchmarks.peak_memory import peak_mib, start_peak_mib
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row

LARGE = {"hidden": 1024, "layers": 2, "steps": 1, "sequences": 4, "sequence_tokens": 1024}
SMALL = {"hidden": 256, "layers": 6, "vocabulary": 4096, "sequence_tokens": 320, "sequences": 16}
SETS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "one": [("naive,zero2", {})],
    "lengths": [
        ("naive,zero2,single", {"sequence_tokens": 256, "sequences": 16}),
        ("naive,zero2,single", {"sequence_tokens": 1024, "sequences": 4}),
        ("naive,zero2", {"sequence_tokens": 4096, "sequences": 1}),
    ],
    "vocabularies": [("naive,zero2", {**LARGE, "vocabulary": size}) for size in (4096, 32_000, 151_936)],
    "padding": [("naive,zero2,single", {"shortest": 0.1, "sequences": 32})],
    "zero": [("naive,plain,zero1,zero2,zero3,zero2x2,zero3x2", SMALL)],
}
STATE_BYTES = {"bfloat16": 14, "float32": 12}
"""Per parameter: itself, its float32 copy if it is none, and AdamW's two moments."""


def measure(variant: str, size: argparse.Namespace) -> dict[str, float]:
    """Build one variant here and time its steps after a short one, in which the optimizer takes its memory."""
    from benchmarks.learner_variants import set_rank_environment

    world_size = 2 if variant.endswith("x2") else 1
    set_rank_environment(size.rank, world_size)
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401  # counted with the libraries

    import learner.deepspeed_backend  # noqa: F401

    ctypes.CDLL(None).malloc_trim(0)
    libraries = start_peak_mib()
    port, other = size.port, None
    if world_size == 2 and size.rank == 0:
        port, other = start_other_rank(variant)
    train, num_parameters = build(variant, size, world_size=world_size, port=port)
    tables = [table_of(lengths, size) for lengths in ([size.prompt_tokens + 32] * world_size, lengths_of(size))]
    train(tables[0])
    ctypes.CDLL(None).malloc_trim(0)
    start_peak_mib()
    seconds = [timed(train, tables[1]) for _ in range(size.steps)]
    peak = peak_mib()
    if other is not None:
        other.wait(timeout=600)
    states = num_parameters * STATE_BYTES[size.dtype] / 2**20
    median = statistics.median(seconds)
    tokens = sum(lengths_of(size))
    return {
        "seconds": median,
        "tokens_per_s": tokens / median,
        "peak_mib": peak,
        "added_mib": peak - libraries - states,
        "states_mib": states,
    }


def table_of(lengths: list[int], size: argparse.Namespace) -> Any:
    """Scored rollouts of these lengths."""
    from benchmarks.learner_variants import scored_table

    return scored_table(lengths, prompt_tokens=size.prompt_tokens, vocabulary=size.vocabulary)


def build(variant: str, size: argparse.Namespace, *, world_size: int, port: int) -> tuple[Any, int]:
    """Return the function that makes one step on a table, and how many parameters it updates."""
    from benchmarks.learner_variants import NaiveLearner, learner_rank, plain_rank, run_config

    if variant == "naive":
        options = {"threads": size.threads, "micro_batch_tokens": size.micro_batch_tokens}
        naive = NaiveLearner(size.folder, dtype=size.dtype, **options)
        return naive.train_step, sum(p.numel() for p in naive.weights.parameters)
    config = run_config(
        size.folder,
        dtype=size.dtype,
        zero_stage=int(variant[4]) if variant.startswith("zero") else 2,
        num_workers=world_size,
        num_threads=size.threads,
        micro_batch_tokens=1 if variant == "single" else size.micro_batch_tokens,
    )
    if variant == "plain":
        rank = plain_rank(config, vocabulary=size.vocabulary)
    else:
        rank = learner_rank(config, rank=size.rank, vocabulary=size.vocabulary)
        rank.setup("127.0.0.1", port or rank.rendezvous()[1])
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in rank.backend.student.parameters())

    def train(table: Any) -> None:
        rank.train_step(0, table, slots=range(size.rank, table.num_rows, world_size))

    return train, parameters // world_size


def timed(train: Any, table: Any) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    train(table)
    return time.perf_counter() - start


def start_other_rank(variant: str) -> tuple[int, subprocess.Popen[bytes]]:
    """Start this script again as the second rank; returns the port where both meet."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, *sys.argv, "--rank=1", f"--port={port}"]
    return port, subprocess.Popen(command, stdout=subprocess.DEVNULL)


def lengths_of(size: argparse.Namespace) -> list[int]:
    """Tokens of each sequence, prompt included: from `shortest` x `sequence_tokens` evenly up to all of them."""
    shares = [size.shortest + (1 - size.shortest) * (i + 1) / size.sequences for i in range(size.sequences)]
    return [max(int(size.sequence_tokens * share), size.prompt_tokens + 1) for share in shares]


def save_model(size: argparse.Namespace) -> None:
    """Write a random student in the Qwen3 architecture, with a tokenizer for nothing but its presence."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=max(size.hidden // 128, 1),
        head_dim=64,
        vocab_size=size.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype=getattr(torch, size.dtype),
    )
    Qwen3ForCausalLM._from_config(config).save_pretrained(size.folder)


def run_case(variants: str, arguments: argparse.Namespace, over: dict[str, Any]) -> None:
    """Compare the variants of one case and print its row; options that were given go before those of the set."""
    given = {name for name, value in vars(arguments).items() if value != PARSER.get_default(name)}
    size = argparse.Namespace(**{**vars(arguments), **{k: v for k, v in over.items() if k not in given}})
    names = (arguments.variants or variants).split(",")
    with tempfile.TemporaryDirectory() as folder:
        size.folder = folder
        save_model(size)
        settings, results = run_variants(__file__, size, names)
    others = [name for name in names if name != names[0]]
    ratios = [Ratio(key, name, names[0]) for name in others for key in ("seconds", "added_mib", "peak_mib")]
    settings.pop("folder")
    emit(result_row("learner", settings, results, ratios), is_saved=arguments.save)


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--set", choices=list(SETS), default="one", help="which cases [one]")
    parser.add_argument("--variants", help="these instead of those of the case, the base of ratios first")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--sequence-tokens", type=int, default=256, help="of the longest, prompt included")
    parser.add_argument("--shortest", type=float, default=1.0, help="length of the shortest as a share of it")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", choices=list(STATE_BYTES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed in each process, the median counts")
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser


PARSER = _parser()


def main() -> None:
    """Compare the variants of every case, or measure one (`--variant`) for the parent process."""
    arguments = PARSER.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments)))
        return
    for variants, over in SETS[arguments.set]:
        run_case(variants, arguments, over)


if __name__ == "__main__":
    main()
