"""How often, and after which waits, a lost learner is brought back."""

import asyncio

from cluster.clock import now
from cluster.health import backoff_s
from controller.learner_group import LearnerLostError
from records.events import Events
from settings.health_config import HealthConfig


class Recovery:
    """Counts the restarts of the learner that led to no new step."""

    def __init__(self, limits: HealthConfig, events: Events) -> None:
        self._limits = limits
        self._events = events
        self._num_in_a_row = 0
        self._furthest = -1  # version at which the learner was lost before
        self._lost_at: float | None = None

    async def prepare(self, lost: LearnerLostError, version: int) -> None:
        """Wait before the next restart; raises `lost` if there were too many without a new step."""
        if version > self._furthest:
            self._num_in_a_row, self._furthest = 0, version
        self._lost_at = now() if self._lost_at is None else self._lost_at
        self._num_in_a_row += 1
        self._events.add("learner_lost", step=version, restart=self._num_in_a_row, reason=str(lost))
        if self._num_in_a_row > self._limits.max_learner_restarts:
            raise lost
        await asyncio.sleep(backoff_s(self._limits, self._num_in_a_row))

    def succeeded(self, version: int) -> None:
        """The learner is back, at the version of its checkpoint."""
        assert self._lost_at is not None
        seconds = round(now() - self._lost_at, 3)
        self._events.add("learner_restarted", step=version, lost_at=self._furthest, seconds=seconds)
        self._lost_at = None


def first_of(group: BaseExceptionGroup[LearnerLostError]) -> LearnerLostError:
    """The first error of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LearnerLostError)
    return error
