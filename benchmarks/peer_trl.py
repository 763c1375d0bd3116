"""TRL's on-policy distillation trainers and this project's whole system on the same models, prompts and sampling.

    .venv/bin/python benchmarks/peer_trl.py --dtype bfloat16 --runs 5 --variants trl-sampled,trl-full,ours-async

Variants, each run in a process of its own, alternating. A run takes `--warmup-steps` and `--steps` steps of the
workload (`benchmarks/workload.py`) and reports medians over the latter:

    trl-sampled    log-probs of the sampled tokens (trl.experimental.iw_opd, the only such trainer of TRL 1.16 that
                   takes a teacher model and needs no server)
    trl-full       reverse KL over the whole vocabulary, in chunks (trl.DistillationTrainer)
    trl-gkd        reverse KL from two whole softmaxes (trl.experimental.gkd)
    ours-async     this project (benchmarks/end_to_end.py)
    ours-sync      the same with max_staleness 0
    raw-generation, raw-prefill, raw-update    the parts of a step, each alone (benchmarks/parts.py)

In bfloat16 TRL's models are loaded in it; a variant that ends in `-autocast` keeps the student in float32 instead
and casts what it computes, which is TRL's default. Ours is compared with the fastest of TRL's variants, and
with the sum of the three parts (efficiency).

The first run makes an environment for TRL (`benchmarks/.peer`, 1.5 GB) from the pins in `benchmarks/peer_trl.txt`.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.alternating import Results, medians_of, run_variants
from benchmarks.peer_trl_environment import PINS, pip_install, python_of, read_pins, ready_python
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row
from benchmarks.workload import make

FOLDER = Path(__file__).resolve().parent
TRAINER, OURS, PARTS = FOLDER / "peer_trl_trainer.py", FOLDER / "end_to_end.py", FOLDER / "parts.py"

LAYOUTS = {"sampled": "32x1", "full": "8x4", "gkd": "32x1"}
"""By trainer, the fastest of the layouts that were tried in float32 (32x1, 8x4 and 4x8; GKD's is not measured)."""

AUTOCAST = "-autocast"
TRL_VARIANTS = tuple(f"trl-{trainer}" for trainer in LAYOUTS)
OUR_VARIANTS = ("ours-async", "ours-sync")
RAW_VARIANTS = ("raw-generation", "raw-prefill", "raw-update")
VARIANTS = (*TRL_VARIANTS, *(f"{name}{AUTOCAST}" for name in TRL_VARIANTS), *OUR_VARIANTS, *RAW_VARIANTS)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--variants", default="trl-sampled,trl-full", help="[trl-sampled,trl-full]")
    parser.add_argument("--layout", help="rows of a micro-batch x micro-batches [the fastest tried]")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"), help="of both models [sdpa]")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of TRL [2]")
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps of a run that are not counted [2]")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run that are [5]")
    parser.add_argument("--our-skip", type=int, default=4, help="steps of our run that are not counted")
    parser.add_argument("--our-steps", type=int, default=8, help="and that are: asynchronous ones even out")
    parser.add_argument(
        "--part-steps", type=int, default=2, help="steps of each part alone, after a first one [2]"
    )
    parser.add_argument("--torch-index-url", help="a second index, where pip's own has no CPU build of torch")
    return parser


def chosen_variants(arguments: argparse.Namespace) -> list[str]:
    """The variants that are asked for; ValueError where one cannot be measured."""
    names = [arguments.variant] if arguments.variant else [name for name in arguments.variants.split(",") if name]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise ValueError(f"no such variant: {', '.join(unknown) or 'none named'}; there are {', '.join(VARIANTS)}")
    if arguments.dtype == "float32" and any(name.endswith(AUTOCAST) for name in names):
        raise ValueError(f"variants that end in {AUTOCAST} need --dtype=bfloat16")
    if any(name in OUR_VARIANTS for name in names) and not OURS.is_file():
        raise ValueError(f"variants {' and '.join(OUR_VARIANTS)} need {OURS}, which is missing")
    return names


def become(variant: str, arguments: argparse.Namespace) -> NoReturn:
    """Turn this process into the one that measures a variant."""
    command, threads = command_of(variant, arguments), {"OMP_NUM_THREADS": str(arguments.threads)}
    os.execve(command[0], command, os.environ | (threads if variant.startswith("trl-") else {}))


def command_of(variant: str, arguments: argparse.Namespace) -> list[str]:
    """What measures this variant."""
    if variant in OUR_VARIANTS:
        sizes = [f"--skip={arguments.our_skip}", f"--steps={arguments.our_steps}"]
        return [sys.executable, str(OURS), f"--variant={variant}", f"--dtype={arguments.dtype}", *sizes]
    if variant in RAW_VARIANTS:
        sizes = [f"--repeats={arguments.part_steps}", f"--part-threads={arguments.threads}"]
        part = f"--variant={variant.removeprefix('raw-')}"
        return [sys.executable, str(PARTS), part, f"--dtype={arguments.dtype}", *sizes]
    trainer = trainer_of(variant)
    options = {
        "trainer": trainer,
        "precision": "autocast" if variant.endswith(AUTOCAST) else arguments.dtype,
        "layout": arguments.layout or LAYOUTS[trainer],
        "attention": arguments.attention,
        "threads": arguments.threads,
        "warmup-steps": arguments.warmup_steps,
        "steps": arguments.steps,
    }
    return [str(python_of()), str(TRAINER), *(f"--{key}={value}" for key, value in options.items())]


def fastest_peer(results: Results) -> str | None:
    """The variant of TRL with the least seconds per step; None where none was measured."""
    medians = medians_of(
        {name: runs for name, runs in results.items() if name.startswith("trl-")}, "seconds_per_step"
    )
    return min(medians, key=lambda name: medians[name]) if medians else None


def ratios_of(variants: Sequence[str], peer: str | None) -> list[Ratio]:
    """Each of ours against one of TRL's."""
    ratios = list[Ratio]()
    for ours in (name for name in variants if name in OUR_VARIANTS and peer is not None):
        assert peer is not None
        ratios += [
            Ratio("seconds_per_step", ours, peer),
            Ratio("cpu_s_per_step", ours, peer),
            Ratio("tokens_per_s", ours, peer, better="higher"),
            Ratio("learner_peak_mib", ours, peer, denominator_key="peak_mib"),
        ]
    for ours in (name for name in variants if name in OUR_VARIANTS and {*RAW_VARIANTS} <= {*variants}):
        ratios.append(Ratio("seconds", "raw-sum", ours, better="higher", denominator_key="seconds_per_step"))
    return ratios


def add_sums(results: Results) -> None:
    """Add the sum of the parts, round by round, as a variant of its own, where all of them were measured."""
    if all(name in results for name in RAW_VARIANTS):
        rounds = zip(*(results[name] for name in RAW_VARIANTS), strict=True)
        results["raw-sum"] = [{"seconds": sum(part["seconds"] for part in parts)} for parts in rounds]


def layouts_of(variants: Sequence[str], layout: str | None) -> Mapping[str, str]:
    """By variant of TRL, rows of a micro-batch x micro-batches of a step."""
    return {name: layout or LAYOUTS[trainer_of(name)] for name in variants if name.startswith("trl-")}


def trainer_of(variant: str) -> str:
    """What `peer_trl_trainer.py` calls the trainer of a variant."""
    return variant.removeprefix("trl-").removesuffix(AUTOCAST)


def main() -> None:
    """Compare the variants, or become the process that measures one (`--variant`)."""
    parser = build_parser()
    arguments = parser.parse_args()
    try:
        variants = chosen_variants(arguments)
    except ValueError as error:
        parser.error(str(error))
    if any(name.startswith("trl-") for name in variants):
        ready_python(pip_install(extra_index_url=arguments.torch_index_url))
    make("qwen3")
    if arguments.variant:
        become(arguments.variant, arguments)
    settings, results = run_variants(__file__, arguments, variants)
    peer = fastest_peer(results)
    add_sums(results)
    row = result_row(
        "peer_trl",
        settings,
        results,
        ratios_of(variants, peer),
        fastest_peer=peer,
        peer_packages=read_pins(PINS),
        layouts=layouts_of(variants, arguments.layout),
    )
    emit(row, is_saved=arguments.save)


if __name__ == "__main__":
    main()
