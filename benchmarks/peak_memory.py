"""Resident memory of this process: what it holds now, and the most it has held since a moment."""

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux wants written to `clear_refs` to set the peak back to the present size."""


def start_peak_mib() -> float:
    """Forget the peak so far; returns the present size in MiB."""
    CLEAR.write_text(RESET_PEAK)
    return _field_mib("VmRSS")


def peak_mib() -> float:
    """Return the largest size in MiB since `start_peak_mib`."""
    return _field_mib("VmHWM")


def _field_mib(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
