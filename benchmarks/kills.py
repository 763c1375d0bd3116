"""Whether anything is lost when workers are killed again and again: simulated engines, the real controller.

    .venv/bin/python benchmarks/kills.py --rollouts 1000000 --every 500

All workers live in this process and take simulated time. `LocalActor.kill` is their `kill -9`: calls in flight
fail, and the pools find out by failed calls and heartbeats alone. Out of 25 kills, 12 hit a random rollout worker,
12 a teacher, 1 the learner (`--kinds`), at random moments. Prints one JSON row: kills, seconds until what was
killed served again (simulated), slots that the ledger lacks (`lost`) or has twice, prompts given up, the largest
staleness, and the growth of resident memory from a fifth of the run to its end, in MiB. Exit code 1 if anything is
wrong.

A prompt that was alone on two engines when they were killed is given up as poison, though it is not: with a kill
every 500 rollouts about one of a million. It is counted and its slot takes another one.

A lost learner drops every response in flight: kill it more rarely than the longest of them takes.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.killer import Killer  # noqa: E402
from commands.chaos.report import check_ledger  # noqa: E402
from commands.plan.prompts import LengthsConfig  # noqa: E402
from commands.plan.run import (  # noqa: E402
    RatesConfig,
    run_virtually,
    simulated_run,
)
from commands.plan.timing import EngineRates  # noqa: E402
from commands.plan.workers import LearnerRates  # noqa: E402
from records.files import read_rows  # noqa: E402
from records.run_folder import RunFolder  # noqa: E402
from settings.run import RunConfig  # noqa: E402

MAX_STALENESS = 8
KINDS = {"rollout": 12, "teacher": 12, "learner": 1}
RATES = RatesConfig(
    rollout=EngineRates(step_s=0.02, sequence_s=0.0002),
    teacher=EngineRates(prefill_tokens_per_s=10_000, call_s=0.3),
    learner=LearnerRates(step_s=0.5, tokens_per_s=20_000),
    lengths=LengthsConfig(prompt=100, median=100, spread=1.0, max=600),
    start_s=2.0,
)


def soak(
    rollouts: int, *, every: int, kinds: Mapping[str, int] = KINDS, batch_size: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Train so many rollouts, with a kill after every `every`; returns what was seen.

    `kinds` says how many kills out of their sum hit each pool.
    """
    config = run_config(rollouts, batch_size, seed)
    with tempfile.TemporaryDirectory() as path:
        return run_virtually(_soak(Path(path), config, every, kinds))


async def _soak(path: Path, config: RunConfig, every: int, kinds: Mapping[str, int]) -> dict[str, Any]:
    rollouts = config.max_steps * config.batch_size
    began, memory = time.perf_counter(), Memory(config.max_steps)
    async with simulated_run(config, RATES, path, with_checkpoints=True) as run:
        killer = Killer(run.pools, lambda worker: worker.handle.kill(), kinds=kinds, seed=config.seed)
        run.pipeline.on_step(killer.after_every(every, batch_size=config.batch_size))
        run.pipeline.on_step(memory.note)
        await run.pipeline.run()
        await killer.close()
    return {
        "rollouts": rollouts,
        "kills": killer.report(),
        **outcome(run.folder, config),
        "rollouts_per_s": round(rollouts / (time.perf_counter() - began)),
        "memory_growth_mib": memory.growth_mib(),
        "memory_mib": memory.sizes_mib,
    }


def outcome(folder: RunFolder, config: RunConfig) -> dict[str, Any]:
    """What a finished run has lost, trained twice, or given up, from its folder."""
    steps, slots = config.max_steps, config.max_steps * config.batch_size
    whole = {"version": steps, "lowest_untrained": slots, "trained_above": []}
    rows, events = folder.valid_metrics(), read_rows(folder.events)
    ledger = check_ledger(folder, whole)
    assert ledger["trained_slots"] <= slots, "the ledger must not hold slots that the run does not have"
    return {
        **ledger,
        "steps": len(rows),
        "given_up": sum(event["event"] == "prompt_given_up" for event in events),
        "workers_given_up": sum(event["event"] == "worker_given_up" for event in events),
        "fall_backs": sum(event["event"] == "learner_restarted" for event in events),
        "rollouts_repeated": sum(len(event["slots"]) for event in events if event["event"] == "rollout_failed"),
        "staleness_max": max(row["staleness/max"] for row in rows),
        "staleness_bound": config.max_staleness,
    }


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether every slot was trained exactly once, within the bound, and no worker was given up."""
    faults = ("lost", "trained_twice", "workers_given_up")
    is_bound_kept = row["staleness_max"] <= row["staleness_bound"]
    return is_bound_kept and row["trained_slots"] == row["rollouts"] and not any(row[name] for name in faults)


class Memory:
    """The size of this process, ten times during a run."""

    def __init__(self, num_steps: int) -> None:
        self._process = psutil.Process()
        self._at = {max(1, num_steps * tenth // 10): tenth for tenth in range(1, 11)}
        self.sizes_mib: dict[int, float] = {}
        """MiB by tenths of the run."""

    def note(self, row: Mapping[str, Any]) -> None:
        """Listen to the steps of a pipeline."""
        if row["step"] in self._at:
            gc.collect()
            size = round(self._process.memory_info().rss / 2**20, 1)
            self.sizes_mib[self._at[row["step"]]] = size
            print(f"step {row['step']}: {size} MiB", file=sys.stderr)

    def growth_mib(self) -> float:
        """From a fifth of the run to its end."""
        return round(self.sizes_mib[10] - self.sizes_mib[2], 1)


def run_config(rollouts: int, batch_size: int, seed: int) -> RunConfig:
    """A run of six rollout workers and three teachers that saves a checkpoint every fifth step."""
    return RunConfig.model_validate(
        {
            **{"run_name": "kills", "batch_size": batch_size, "max_steps": rollouts // batch_size, "seed": seed},
            **{"max_staleness": MAX_STALENESS, "batches_ahead": 2, "student": {"model_path": "simulated"}},
            **{"data": {"train_path": "simulated"}, "evaluation": {"teacher": False}},
            **{"rollout": {"num_workers": 6}, "teacher": {"model_path": "simulated", "num_workers": 3}},
            **{"checkpoint": {"every_steps": 5}, "logging": {"tensorboard": False}},
        }
    )


def read_kinds(text: str) -> dict[str, int]:
    """`rollout=12,learner=1` as a mapping."""
    return {kind: int(num) for kind, _, num in (part.partition("=") for part in text.split(","))}


def main() -> int:
    """Run once and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=500, help="rollouts between two kills")
    parser.add_argument("--kinds", type=read_kinds, default=KINDS, help="e.g. rollout=1,teacher=1,learner=1")
    parser.add_argument("--batch_size", type=int, default=100, help="rollouts per step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    row = soak(**vars(arguments))
    print(json.dumps(row))
    return 0 if is_whole(row) else 1


if __name__ == "__main__":
    sys.exit(main())
