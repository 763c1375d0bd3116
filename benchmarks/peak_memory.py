"""Resident memory of this process: what it holds now, and the most it has held since a moment."""

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux wants written to `clear_refs` to set the peak back to the present size."""


def start_peak_mib() -> float:
    """Forget the peak so far; returns the present size in MiB."""
    CLEAR.write_text(RESET_PEAK)
    return _field_mib("VmRSS")


def peak_mib(pid: int | None = None) -> float:
    """Return the largest size in MiB since `start_peak_mib`, or of another process since it started.

    OSError if it has ended.
    """
    return _field_mib("VmHWM", STATUS if pid is None else Path(f"/proc/{pid}/status"))


def _field_mib(name: str, status: Path = STATUS) -> float:
    lines = status.read_text().splitlines()
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    if found is None:
        raise ProcessLookupError(f"{status} has no {name}: the process has ended")
    return int(found.split()[1]) / 1024
