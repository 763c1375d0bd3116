"""How much faster asynchronous runs are than synchronous ones, in simulated time: the same slots, the same budget.

    .venv/bin/python benchmarks/asynchrony.py --steps 60

The real controller runs with workers that only take time (`commands/plan/`): one rollout worker that
decodes up to 64 sequences together, one teacher, and a learner about as fast. Prints one JSON row for each spread
of response lengths (standard deviation of their logarithm). Its variants are max_staleness-batches_ahead: the
simulated seconds of a step, those of the synchronous run divided by them, and the staleness.
Nothing in it depends on the machine.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import Ratio, emit, result_row

VARIANTS = {"synchronous": (0, 0), "1-1": (1, 1), "4-1": (4, 1), "8-2": (8, 2)}
"""(max_staleness, batches_ahead) by name."""
RATIOS = [Ratio("step_s", "synchronous", name, better="higher") for name in list(VARIANTS)[1:]]
SPREADS = [0.0, 0.5, 1.0, 1.5]


def main() -> None:
    """Simulate every setting; a row for each spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--spreads", type=float, nargs="*", default=SPREADS)
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results/")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for spread in arguments.spreads:
        results = {name: [simulated(spread, *limits, arguments.steps)] for name, limits in VARIANTS.items()}
        settings = {"steps": arguments.steps, "spread": spread}
        emit(result_row("asynchrony", settings, results, RATIOS), is_saved=arguments.save)


def simulated(spread: float, max_staleness: int, batches_ahead: int, steps: int) -> dict[str, float]:
    """Simulate one run; its first steps, in which nothing is ready yet, do not count."""
    from commands.plan.prompts import LengthsConfig
    from commands.plan.rates import RatesConfig
    from commands.plan.run import simulate
    from commands.plan.timing import EngineRates
    from commands.plan.workers import LearnerRates
    from settings.run import RunConfig

    config = RunConfig.model_validate(
        {
            **{"batch_size": 64, "max_steps": steps, "max_staleness": max_staleness},
            **{"batches_ahead": batches_ahead, "student": {"model_path": "simulated"}},
            **{"teacher": {"model_path": "simulated"}, "data": {"train_path": "simulated"}},
            **{"evaluation": {"teacher": False}, "checkpoint": {"every_steps": 0}},
        }
    )
    rates = RatesConfig(
        rollout=EngineRates(step_s=0.02, sequence_s=0.0002, max_num_seqs=64),
        teacher=EngineRates(prefill_tokens_per_s=20_000),
        learner=LearnerRates(step_s=0.5, tokens_per_s=3_000),
        lengths=LengthsConfig(prompt=100, median=300, spread=spread, max=8192),
    )
    rows = simulate(config, rates)[3:]
    return {
        "step_s": round(statistics.mean(row["time/step_s"] for row in rows), 2),
        "staleness_mean": round(statistics.mean(row["staleness/mean"] for row in rows), 2),
        "staleness_max": max(row["staleness/max"] for row in rows),
    }


if __name__ == "__main__":
    main()
