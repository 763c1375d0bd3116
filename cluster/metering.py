"""Throughput of a stage between two looks at it."""

from cluster.clock import now


class Meter:
    """Counts, and gives the rate since it was last read."""

    def __init__(self) -> None:
        self._count = 0
        self._since = now()

    def add(self, count: int) -> None:
        """Count some more."""
        self._count += count

    def take(self) -> float:
        """Return the count per second since the last call, and start anew."""
        until = now()
        rate = self._count / max(until - self._since, 1e-9)
        self._count, self._since = 0, until
        return rate
