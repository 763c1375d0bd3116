"""Where the time goes before workers are placed: seconds by phase, from the start of this process on."""

import os
import time
from pathlib import Path


class StartTimes:
    """Phases that follow one another; a new object ends the first.

    >>> times = StartTimes("imports")
    >>> times.end("inputs")
    {'imports': 0.81, 'inputs': 4.1}
    """

    def __init__(self, first: str, *, began: float | None = None) -> None:
        """`began` is when the first phase began, by default this process; seconds since the epoch."""
        self._since = _began() if began is None else began
        self.seconds: dict[str, float] = {}
        self.end(first)

    def end(self, phase: str) -> dict[str, float]:
        """A phase ends now, and the next one begins; returns the seconds of all that have ended."""
        now = time.time()
        self.seconds[phase], self._since = round(now - self._since, 3), now
        return dict(self.seconds)


def _began() -> float:
    """When this process began, to a hundredth of a second: psutil's answer is off by up to one."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
