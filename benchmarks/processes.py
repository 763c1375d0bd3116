"""Watches the processes of a run from outside: CPU seconds from a step on, and each role's peak memory."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import psutil

POLL_S = 0.2


@dataclass
class Watched:
    """What the processes did between two steps."""

    cpu_s: float
    """Of all processes of the run together."""
    cpu_s_of_role: dict[str, float]
    peak_mib: dict[str, float] = field(default_factory=dict)
    """By role, the largest resident memory of its process, from its start on (its largest process)."""


class Watch:
    """The process tree below `pid`; counting begins when `metrics` has `skip` rows and ends with the last row.

    `roles` maps a role to what the titles of its processes contain.
    """

    def __init__(self, pid: int, metrics: Path, skip: int, roles: Mapping[str, str]) -> None:
        self._root = psutil.Process(pid)
        self._metrics, self._skip, self._roles = metrics, skip, roles
        self._cpu: dict[int, float] = {}
        self._role_of: dict[int, str] = {}
        self._peak: dict[str, float] = {}

    def until_end(self, process: Popen[bytes], *, timeout_s: float) -> Watched:
        """Wait for the end of the run; TimeoutError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        num_rows, first, last = 0, dict[int, float](), dict[int, float]()
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run has not ended after {timeout_s:g} s")
            self._look()
            now = len(self._metrics.read_bytes().splitlines()) if self._metrics.exists() else 0
            if now != num_rows:
                num_rows = now
                if now >= self._skip and not first:
                    first = dict(self._cpu)
                last = dict(self._cpu)
            time.sleep(POLL_S)
        spent = {pid: cpu_s - first.get(pid, 0.0) for pid, cpu_s in last.items()}
        of_role = {
            role: sum(s for pid, s in spent.items() if self._role_of.get(pid) == role) for role in self._roles
        }
        return Watched(sum(spent.values()), of_role, dict(self._peak))

    def _look(self) -> None:
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for each in found:
            try:
                times = each.cpu_times()
                self._cpu[each.pid] = times.user + times.system
                self._note_role(each)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue

    def _note_role(self, each: psutil.Process) -> None:
        title = " ".join(each.cmdline())
        for role, text in self._roles.items():
            if text in title:
                self._role_of[each.pid] = role
                status = Path(f"/proc/{each.pid}/status").read_text(encoding="utf-8")
                peak = next(
                    int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
                )
                self._peak[role] = max(peak, self._peak.get(role, 0.0))
