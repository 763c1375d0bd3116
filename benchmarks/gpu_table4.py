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
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_update import SIZES, Update, timed


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
