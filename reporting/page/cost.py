"""What a run cost: devices reserved by every pool over time, and tokens that were generated for nothing.

Devices count from the start of a worker's engine or rank to its end, also while it waits; the wait for a place in
the cluster does not. A worker whose end was not recorded counts until the run was last heard of.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.placement import plan
from records.metrics import BY_KEY
from reporting.page.run_data import Row, RunData, mean, number, total

ENDS = frozenset({"worker_died", "worker_ended", "worker_retired", "worker_given_up"})


@dataclass(frozen=True)
class PoolCost:
    """One pool: `seconds` of workers, and devices times seconds."""

    role: str
    device: str
    """What one worker reserves: "1 GPU", "0.5 CPU"."""
    num_workers: int
    """Workers, by name."""
    num_starts: int
    seconds: float
    device_s: float
    per_1000_tokens: float | None
    """Device-seconds per 1,000 tokens trained in steps that count."""
    busy: float | None
    """Mean share of the time in which a worker had any work; None where no metric tells."""


@dataclass(frozen=True)
class WasteLine:
    """Tokens that were generated and not trained on, of one cause."""

    cause: str
    tokens: int
    share: float
    """Of all tokens that were generated, as far as they are known."""


def pool_costs(run: RunData) -> list[PoolCost]:
    """The pools of a run, in the order of their placement; empty without a configuration."""
    if run.config is None:
        return []
    tokens = total(run.rows, "tokens_trained")
    lives = _lives(run)
    found = []
    for demand in plan(run.config):
        mine = {worker: each for worker, each in lives.items() if worker.rpartition("-")[0] == demand.role}
        if not mine:
            continue
        bundles = (demand.bundle, *demand.further_stages)
        gpus = sum(bundle.get("GPU", 0.0) for bundle in bundles)
        devices, kind = (gpus, "GPU") if gpus else (sum(bundle.get("CPU", 0.0) for bundle in bundles), "CPU")
        seconds = sum(sum(each) for each in mine.values())
        found.append(
            PoolCost(
                role=demand.role,
                device=f"{devices:g} {kind}",
                num_workers=len(mine),
                num_starts=sum(len(each) for each in mine.values()),
                seconds=seconds,
                device_s=seconds * devices,
                per_1000_tokens=1000 * seconds * devices / tokens if tokens else None,
                busy=mean(run.rows, f"busy/{demand.role}"),
            )
        )
    return found


def _lives(run: RunData) -> dict[str, list[float]]:
    """Seconds of every life of each worker, by name."""
    lives: defaultdict[str, list[float]] = defaultdict(list)
    since: dict[str, float] = {}
    heard = run.start_s
    beats = sorted(time for row in run.rows if (time := number(row, "time_s")) is not None)
    for event in run.events:
        time_s, worker, kind = number(event, "time"), event.get("worker"), event["event"]
        if time_s is None:
            continue
        if kind == "run_started":  # what is still open was cut off with the process before
            last = max([beat for beat in beats if beat < time_s] + [heard])
            for name in [*since]:
                lives[name].append(max(0.0, last - since.pop(name)))
        heard = time_s
        if not isinstance(worker, str):
            continue
        if kind in ENDS and worker in since:
            lives[worker].append(max(0.0, time_s - since.pop(worker)))
        elif kind == "worker_started":
            if worker in since:
                lives[worker].append(max(0.0, time_s - since[worker]))
            since[worker] = time_s - (number(event, "seconds") or 0.0)
    for name, start in since.items():
        lives[name].append(max(0.0, run.end_s - start))
    return lives


def waste_lines(run: RunData) -> list[WasteLine]:
    """Causes with any tokens, the largest first; tokens that masks left out are one of them."""
    last: Row = run.all_rows[-1] if run.all_rows else {}
    causes = {cause: text for cause, text in BY_KEY["wasted/{cause}"].members.items() if cause != "cut_off"}
    counts = {text: number(last, f"wasted/{cause}") or 0.0 for cause, text in causes.items()}
    for key in sorted({key for row in run.rows for key in row if key.startswith("masked/")}):
        what = "not finite" if key == "masked/nonfinite" else f"masked: {key.removeprefix('masked/')}"
        counts[f"response tokens that were {what}"] = total(run.rows, key)
    generated = total(run.rows, "tokens_trained") + sum(counts.values())
    lines = [WasteLine(cause, int(n), n / generated) for cause, n in counts.items() if n]
    return sorted(lines, key=lambda line: -line.tokens)


def num_cut_off(run: RunData) -> int:
    """Attempts that ended before their response did."""
    return int(number(run.all_rows[-1], "wasted/cut_off") or 0) if run.all_rows else 0


def wasted_tokens(lines: Sequence[WasteLine]) -> int:
    """All of them."""
    return sum(line.tokens for line in lines)
