"""Seconds from the command to the end of the first optimizer step of the demo, by phase.

    .venv/bin/python benchmarks/startup.py                                   # this code
    .venv/bin/python benchmarks/startup.py --other ../before                 # beside another checkout, in turn

Every counted run is `launch.py train` in a fresh process with a fresh runs folder, ended once `metrics.jsonl` has
a step. The phases come from what the run writes: they follow one another, and their sum is `first_step_s`.
The models must have been made (`make demo`).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import ROOT, Ratio, benchmark_parser, emit, result_row

POLL_S = 0.05
TIMEOUT_S = 600.0
Row = Mapping[str, Any]


def phases(events: Sequence[Row], timeline: Sequence[Row], step: Row, *, began: float) -> dict[str, float]:
    """Seconds of each phase of a run that `began` with its command, until its first step; ValueError without one.

    `imports`, `inputs` and `ray` are the run's own, where it tells; what else is before its workers are placed is
    `before`. `engines`: until the last worker has started; of each role, `started_ROLE_s` is counted from its
    placement. `batch` is rollouts, scores and evaluations before the first step, which run side by side: when
    the first rollouts and scores were there is counted from the first loaded weights.
    """
    started, loaded = _first(events, "run_started"), _first(events, "weights_loaded")
    placed = next((row["time"] for row in events if row["event"] == "workers_placed"), started["time"])
    workers = [row for row in events if row["event"] == "worker_started" and row["time"] <= loaded["time"]]
    train = next((row for row in timeline if row["stage"] == "train"), None)
    if not workers or train is None:
        raise ValueError("the run has not trained yet")
    prepared = next((row["seconds"] for row in events if row["event"] == "prepared"), {})
    told = {f"{name}_s": seconds for name, seconds in prepared.items()}
    engines = max(row["time"] for row in workers)
    found = told | {
        "before_s": started["time"] - began - sum(told.values()),
        "placed_s": placed - started["time"],
        "engines_s": engines - placed,
        "weights_s": loaded["time"] - engines,
        "batch_s": train["start"] - loaded["time"],
        "train_s": train["end"] - train["start"],
        "record_s": step["time_s"] - train["end"],
        "first_step_s": step["time_s"] - began,
    }
    for role in dict.fromkeys(row["worker"].rpartition("-")[0] for row in workers):
        own = [row["time"] for row in workers if row["worker"].startswith(f"{role}-")]
        found[f"started_{role}_s"] = max(own) - placed
    for stage, name in (("generate", "first_rollouts_s"), ("score", "first_scores_s")):
        ends = [row["end"] for row in timeline if row["stage"] == stage and row["end"] <= train["start"]]
        if ends:
            found[name] = min(ends) - loaded["time"]
    return {name: round(seconds, 3) for name, seconds in found.items()}


def measure(checkout: Path, options: Sequence[str]) -> dict[str, float]:
    """Run the demo of a checkout until its first step is recorded, and end it."""
    with tempfile.TemporaryDirectory(prefix="startup-") as runs:
        run = Path(runs) / "startup"
        command = [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", "--max-steps", "3"]
        command += ["--runs-path", runs, "--run-name", run.name, *options]
        with (Path(runs) / "output").open("w+", encoding="utf-8") as output:
            began = time.time()
            process = subprocess.Popen(command, cwd=checkout, stdout=output, stderr=output)
            try:
                _wait_for_step(process, run / "metrics.jsonl", began + TIMEOUT_S)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(120)
            if not (run / "metrics.jsonl").exists():
                output.seek(0)
                raise RuntimeError(f"no step in {TIMEOUT_S:g} s: {output.read()[-3000:]}")
        rows = (_rows(run / name) for name in ("events.jsonl", "timeline.jsonl", "metrics.jsonl"))
        events, timeline, metrics = rows
        return phases(events, timeline, metrics[0], began=began)


def _wait_for_step(process: subprocess.Popen[bytes], metrics: Path, deadline: float) -> None:
    while process.poll() is None and time.time() < deadline:
        if metrics.exists() and metrics.read_text(encoding="utf-8").endswith("\n"):
            return
        time.sleep(POLL_S)


def _first(rows: Sequence[Row], event: str) -> Row:
    found = next((row for row in rows if row["event"] == event), None)
    if found is None:
        raise ValueError(f"the run has no event {event}")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Print one JSON row: the phases of this code, and the ratio to another checkout if there is one."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--other", type=Path, help="another checkout of this code, measured in turn")
    parser.add_argument(
        "--option", action="append", default=[], help="passed on to launch.py train, one word each"
    )
    arguments: argparse.Namespace = parser.parse_args()
    checkouts = {"ours": ROOT} | ({} if arguments.other is None else {"other": arguments.other.resolve()})
    if arguments.variant:
        print(json.dumps(measure(checkouts[arguments.variant], arguments.option)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run in progress is ended too
    results: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(arguments.warmup + arguments.runs):
        for name, checkout in checkouts.items():
            found = measure(checkout, arguments.option)
            print(
                f"run {number} {name}: {json.dumps(found)} load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
            if number >= arguments.warmup:
                results[name].append(found)
    ratios = [Ratio("first_step_s", "ours", "other")] if arguments.other is not None else []
    settings = {"config": "configs/demo.yaml", "runs": arguments.runs, "warmup": arguments.warmup}
    emit(result_row("startup", settings | {"options": arguments.option}, results, ratios), is_saved=arguments.save)


if __name__ == "__main__":
    main()
