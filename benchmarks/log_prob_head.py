"""Peak memory and CPU time of the chunked log-prob head against the naive one, forward and backward.

    .venv/bin/python benchmarks/log_prob_head.py --tokens 4096 --vocabulary 151936 --hidden 1024 --dtype bfloat16

Each variant runs in a process of its own, alternating, `--runs` times. The naive head is
`log_softmax(linear(hidden))` over [N, V] under autograd. Prints one JSON row: medians and ratios.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.alternating import run_variants
from benchmarks.peak_memory import peak_mib, start_peak_mib
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row

VARIANTS = ("chunked", "naive")
RATIOS = tuple(Ratio(key, "chunked", "naive") for key in ("memory_mib", "cpu_s"))


def measure(variant: str, size: argparse.Namespace) -> dict[str, float]:
    """Run one forward and backward here; memory is what it adds to the process, in MiB."""
    import torch

    from learner.log_probs import HeadLimits, sampled_log_probs

    torch.set_num_threads(size.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, size.dtype)
    hidden_NH = torch.randn(size.tokens, size.hidden, dtype=dtype).requires_grad_()
    weight_VH = (0.02 * torch.randn(size.vocabulary, size.hidden)).to(dtype).requires_grad_()
    ids_N = torch.randint(size.vocabulary, (size.tokens,))
    before = start_peak_mib()
    start = time.process_time()
    if variant == "chunked":
        logp_N, _ = sampled_log_probs(hidden_NH, weight_VH, None, ids_N, HeadLimits(size.vocabulary))
    else:
        logits_NV = torch.nn.functional.linear(hidden_NH, weight_VH).float()
        logp_N = torch.log_softmax(logits_NV, -1).gather(-1, ids_N[:, None])[:, 0]
    (-logp_N.mean()).backward()
    cpu_s = time.process_time() - start
    peak = peak_mib()
    return {"memory_mib": peak - before, "cpu_s": cpu_s}


def main() -> None:
    """Compare both variants, or measure one (`--variant`) for the parent process."""
    parser = benchmark_parser(__doc__, runs=3, warmup=0)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments)))
        return
    settings, results = run_variants(__file__, arguments, VARIANTS)
    emit(result_row("log_prob_head", settings, results, RATIOS), is_saved=arguments.save)


if __name__ == "__main__":
    main()
