"""Learner update of PowerOPD against full-vocabulary OPD: time and peak memory, as in Table 4 of arXiv 2606.17199.

    python benchmarks/gpu_table4.py                          # Qwen3-0.6B from Qwen3-4B, batch 8, on a GPU
    python benchmarks/gpu_table4.py --size tiny --device cpu # the same code in seconds, anywhere

Random weights in the two architectures, random tokens: an update is the teacher's forward, the student's forward
and backward, and an AdamW step. Needs torch and transformers only. Variants:

    power        teacher and student log-probs of the sampled tokens by the learner's chunked head
    full_naive   both full softmaxes over [tokens, vocabulary], reverse KL, the way trainers commonly do it

Variants alternate in this process; prints one JSON row. `gpu_learner.py` has further variants, and the parts that
memory bounds.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_learner import measure_updates, ratios_of, update_parser
from benchmarks.gpu_peaks import peaks_of
from benchmarks.gpu_update import Update
from benchmarks.rows import emit, result_row

VARIANTS = ("power", "full_naive")


def main(argv: list[str] | None = None) -> None:
    """Parse, compare, print one JSON row."""
    arguments = update_parser(__doc__).parse_args(argv)
    names = [arguments.variant] if arguments.variant else [*VARIANTS]
    peaks = peaks_of(torch.device(arguments.device), torch.bfloat16)
    results = measure_updates(Update(arguments), names, arguments, peaks)
    emit(result_row("gpu_table4", vars(arguments), results, ratios_of(results)), is_saved=arguments.save)


if __name__ == "__main__":
    main()
