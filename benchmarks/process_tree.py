"""The processes of a run, watched from outside: CPU seconds of all of them, and resident memory by role.

tree = ProcessTree(psutil.Process(run.pid), folder)
samples.append(tree.sample())                      # now and then, while it trains
window_of(samples, 10, 60)                         # what steps 11 to 60 took
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

from cluster.jsonl import read_rows


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment."""

    step: int
    """The newest step in metrics.jsonl."""
    tokens: int
    """Response tokens trained so far."""
    cpu_s: float
    """Of all processes that there have been."""
    rss_mib: Mapping[str, float]
    """Resident memory by role: `driver`, those of the workers, and `ray`."""


class ProcessTree:
    """A run's driver and all its descendants."""

    def __init__(self, driver: psutil.Process, folder: Path) -> None:
        """`folder` is the run's: its events say which process has which role."""
        self._driver = driver
        self._folder = folder
        self._cpu_s: dict[tuple[int, float], float] = {}  # of every process, when it was seen last

    def sample(self) -> Sample | None:
        """Look at all processes; None before the first step, or once the driver has ended."""
        rss_mib: dict[str, float] = {}
        role_of = self._roles()
        try:
            processes = [self._driver, *self._driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return None
        for process in processes:
            try:
                with process.oneshot():
                    times, rss = process.cpu_times(), process.memory_info().rss
                    self._cpu_s[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue  # it ended meanwhile
            role = "driver" if process.pid == self._driver.pid else role_of.get(process.pid, "ray")
            rss_mib[role] = rss_mib.get(role, 0.0) + rss / 2**20
        rows = list(read_rows(self._folder / "metrics.jsonl"))
        if not rows:
            return None
        tokens = sum(row["tokens_trained"] for row in rows)
        return Sample(rows[-1]["step"], tokens, sum(self._cpu_s.values()), rss_mib)

    def _roles(self) -> dict[int, str]:
        """Role by process: of the workers that have started."""
        events = read_rows(self._folder / "events.jsonl")
        started = [event for event in events if event["event"] == "worker_started"]
        return {event["pid"]: event["worker"].rpartition("-")[0] for event in started}


def window_of(samples: Sequence[Sample], first: int, last: int) -> dict[str, float]:
    """What the steps after `first`, up to `last`, took, by the samples taken between.

    Cost per token is by the first and the last sample in the window, memory is the mean of all. ValueError if no
    step was seen to end in it.
    """
    inside = [each for each in samples if first <= each.step <= last]
    if not inside or inside[-1].tokens == inside[0].tokens:
        raise ValueError(f"no two steps were seen between steps {first} and {last}: they are too fast or too few")
    begin = inside[0]
    end = next(each for each in inside if each.step == inside[-1].step)
    tokens = end.tokens - begin.tokens
    used = [each for each in inside if each.tokens <= end.tokens]
    memory = {f"{role}_mib": mean(each.rss_mib.get(role, 0.0) for each in used) for role in used[0].rss_mib}
    return {
        "cpu_us_per_token": 1e6 * (end.cpu_s - begin.cpu_s) / tokens,
        "tokens_per_step": tokens / (end.step - begin.step),
        "steps": end.step - begin.step,
        **memory,
    }
