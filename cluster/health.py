"""The health of one worker: what its answers and failures mean. Pure: time is given, nothing is called.

                              .----- answers again -----.
                              v                         |
    STARTING ------------> HEALTHY --- silent -----> SUSPECT
        |       weights     ^   |                       |
        |       loaded or   |   | other weights         | silent too long, wedged, process gone
        |       answer      |   v                       v
        |       known ---- STALE                      DEAD --- after a back-off ---> RESTARTING
        |                   ^                                                            |
        |                   '------------------- engine started -------------------------'
        '--> RETIRED <-- DRAINING <-- (scaled away)          DEAD --> RETIRED: too many restarts in a row

Only HEALTHY workers are given work. Every state but RETIRED may become DEAD. A student engine leaves STALE with a
verified load of the current weights, a teacher by agreeing with its replicas (`cluster/replica_check.py`).

Kept apart: silence (heartbeats), progress (a wedged engine answers heartbeats), requests that fail on a worker
that answers and then succeed on another, and restarts that led to nothing. Failures of prompts are counted by the
stages.
"""

from enum import StrEnum

from settings.cluster import HealthConfig
from transport.notes import Heartbeat


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    DRAINING = "draining"
    RETIRED = "retired"


_S = WorkerState
_END = {_S.DEAD, _S.RETIRED}

NEXT_STATES: dict[WorkerState, set[WorkerState]] = {
    _S.STARTING: {_S.HEALTHY, _S.STALE, *_END},
    _S.HEALTHY: {_S.SUSPECT, _S.STALE, _S.DRAINING, *_END},
    _S.SUSPECT: {_S.HEALTHY, _S.STALE, _S.DRAINING, *_END},
    _S.DEAD: {_S.RESTARTING, _S.RETIRED},
    _S.RESTARTING: {_S.STALE, *_END},
    _S.STALE: {_S.HEALTHY, *_END},
    _S.DRAINING: _END,
    _S.RETIRED: set(),
}
"""The states that may follow each state."""


class Verdict(StrEnum):
    """What a look at a worker says."""

    FINE = "fine"
    SUSPECT = "suspect"
    SILENT = "silent"
    WEDGED = "wedged"


class Health:
    """What is known of one worker; times in seconds of one clock.

    >>> health = Health(HealthConfig(), now=0.0)
    >>> health.look(10.0), health.look(15.0), health.look(60.0)
    (<Verdict.FINE: 'fine'>, <Verdict.SUSPECT: 'suspect'>, <Verdict.SILENT: 'silent'>)
    """

    def __init__(self, limits: HealthConfig, *, now: float) -> None:
        self._limits = limits
        self._num_blamed = 0  # requests, since one succeeded
        self._num_restarts = 0  # in a row
        self.begin(now)

    def begin(self, now: float) -> None:
        """A new life of the worker begins to be watched."""
        self._heard_at = self._progressed_at = now
        self._progress: int | None = None
        self._num_blamed = 0

    def hear(self, heartbeat: Heartbeat, now: float) -> None:
        """The worker has answered."""
        self._heard_at = max(self._heard_at, now)
        if heartbeat.progress != self._progress or not heartbeat.is_working:
            self._progress, self._progressed_at = heartbeat.progress, now

    def forgive(self, seconds: float) -> None:
        """Nobody listened for these seconds (the controller itself stood still): not the worker's silence."""
        self._heard_at += seconds
        self._progressed_at += seconds

    def look(self, now: float) -> Verdict:
        """Judge the worker."""
        silence = now - self._heard_at
        if silence >= self._limits.dead_after_s:
            return Verdict.SILENT
        if silence >= self._limits.suspect_after_s:
            return Verdict.SUSPECT
        if now - self._progressed_at >= self._limits.stall_after_s:
            return Verdict.WEDGED
        return Verdict.FINE

    def succeed(self) -> None:
        """A request was served: earlier failures and restarts do not count any more."""
        self._num_blamed = 0
        self._num_restarts = 0

    def blame(self) -> bool:
        """A request that failed on the worker has succeeded on another; True if that was so too often in a row."""
        self._num_blamed += 1
        return self._num_blamed >= self._limits.max_failed_requests

    def next_backoff_s(self) -> float | None:
        """Count one more restart; returns how long to wait before it, or None if there were too many in a row."""
        if self._num_restarts >= self._limits.max_restarts:
            return None
        self._num_restarts += 1
        return backoff_s(self._limits, self._num_restarts)

    def excuse(self) -> None:
        """The restart counted last failed for want of capacity: it does not count."""
        self._num_restarts = max(0, self._num_restarts - 1)


def backoff_s(limits: HealthConfig, attempt: int) -> float:
    """Seconds before attempt number `attempt` (from 1): doubled with each, up to the longest wait."""
    return min(limits.max_backoff_s, limits.backoff_s * 2.0 ** min(attempt - 1, 60))
