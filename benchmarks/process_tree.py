"""The processes of a run, watched from outside: CPU seconds of all of them, and resident memory by role.

samples = watched_run(command, folder, log, every_s=1.0, timeout_s=600.0)    # one now and then, while it trains
window_of(samples, 10, 60)                                                  # what steps 11 to 60 took
"""

import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import psutil

from benchmarks.peak_memory import peak_mib
from records.files import read_rows

ROOT = Path(__file__).resolve().parents[1]


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
    cpu_s_of_role: Mapping[str, float] = field(default_factory=dict)
    peak_mib: Mapping[str, float] = field(default_factory=dict)
    """By role, the most that one of its processes has held since it started."""


class ProcessTree:
    """A run's driver and all its descendants."""

    def __init__(self, driver: psutil.Process, folder: Path) -> None:
        """`folder` is the run's: its events say which process has which role."""
        self._driver = driver
        self._folder = folder
        self._cpu_s: dict[tuple[int, float], float] = {}  # of every process, when it was seen last
        self._role_of: dict[tuple[int, float], str] = {}
        self._peak_mib: dict[str, float] = {}

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
                    key = (process.pid, process.create_time())
                peak = peak_mib(process.pid)
            except (psutil.NoSuchProcess, OSError):
                continue  # it ended meanwhile
            role = "driver" if process.pid == self._driver.pid else role_of.get(process.pid, "ray")
            self._cpu_s[key], self._role_of[key] = times.user + times.system, role
            self._peak_mib[role] = max(peak, self._peak_mib.get(role, 0.0))
            rss_mib[role] = rss_mib.get(role, 0.0) + rss / 2**20
        rows = list(read_rows(self._folder / "metrics.jsonl"))
        if not rows:
            return None
        tokens = sum(row["tokens_trained"] for row in rows)
        of_role: dict[str, float] = defaultdict(float)
        for key, cpu_s in self._cpu_s.items():
            of_role[self._role_of[key]] += cpu_s
        return Sample(rows[-1]["step"], tokens, sum(of_role.values()), rss_mib, of_role, dict(self._peak_mib))

    def _roles(self) -> dict[int, str]:
        """Role by process: of the workers that have started."""
        events = read_rows(self._folder / "events.jsonl")
        started = [event for event in events if event["event"] == "worker_started"]
        return {event["pid"]: event["worker"].rpartition("-")[0] for event in started}


def watched_run(
    command: Sequence[str], folder: Path, log: Path, *, every_s: float, timeout_s: float
) -> list[Sample]:
    """Run a training, whose output goes to `log` and whose run folder is `folder`, and look at it until it ends.

    RuntimeError with the end of its output if it fails, or has not ended after `timeout_s`.
    """
    samples = list[Sample]()
    deadline = time.monotonic() + timeout_s
    with log.open("w", encoding="utf-8") as output:
        run = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            tree = ProcessTree(psutil.Process(run.pid), folder)
            while run.poll() is None and time.monotonic() < deadline:
                if (sample := tree.sample()) is not None:
                    samples.append(sample)
                time.sleep(every_s)
        finally:
            if run.poll() is None:
                run.terminate()
                run.wait(timeout=120)
    if run.returncode:
        raise RuntimeError(f"{folder.name} ended with {run.returncode}: {log.read_text(encoding='utf-8')[-3000:]}")
    return samples


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
