"""Settings of how faults are found, and how often is tried again."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from settings.engine import NonNegative, Positive, Seconds, Section

Backoff = Annotated[float, Field(gt=0, le=3600)]


class HealthConfig(Section):
    """When a worker is doubted, when it is replaced, and when a run gives up."""

    heartbeat_s: Seconds = 5.0
    """Every worker is asked this often whether it lives, and how far its engine is."""
    suspect_after_s: Seconds = 15.0
    """A worker that has not answered for so long is given no new work until it answers again."""
    dead_after_s: Seconds = 60.0
    """A worker that has not answered for so long (frozen, cut off) is ended and replaced; learner ranks too."""
    stall_after_s: Seconds = 300.0
    """An engine that has work, answers, and makes no token for so long is wedged: it is ended and replaced."""
    max_failed_requests: Positive = 5
    """Requests in a row that failed on an engine and then succeeded on another, before it is replaced."""
    max_restarts: NonNegative = 6
    """Restarts of one worker in a row without a request served in between; then it is given up. The run fails when
    a pool has no worker left."""
    no_worker_after_s: Seconds = 1800.0
    """The run fails when a pool has had no worker that could be given work for so long."""
    backoff_s: Backoff = 1.0
    """Wait so long before the first restart of a worker or of the learner; it doubles with each in a row."""
    max_backoff_s: Backoff = 60.0
    """Longest wait before a restart."""
    max_learner_restarts: NonNegative = 3
    """Restarts of the learner in a row without a new step in between; then the run fails."""
    max_skipped_steps: Positive = 3
    """So many steps in a row without a finite gradient stop the run, with a checkpoint."""

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if not self.heartbeat_s < self.suspect_after_s < self.dead_after_s:
            raise ValueError(
                "health.heartbeat_s < health.suspect_after_s < health.dead_after_s must hold, got "
                f"{self.heartbeat_s:g}, {self.suspect_after_s:g}, {self.dead_after_s:g} (nearest valid: "
                f"{self.heartbeat_s:g}, {3 * self.heartbeat_s:g}, {12 * self.heartbeat_s:g})"
            )
        if self.backoff_s > self.max_backoff_s:
            raise ValueError(
                f"health.backoff_s must be <= health.max_backoff_s ({self.max_backoff_s:g}), "
                f"got {self.backoff_s:g}"
            )
        return self
