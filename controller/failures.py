"""Earlier attempts at one prompt or rollout: whose fault they were, and when it is set aside.

Two budgets, kept apart: attempts that an engine refused (`rollout.max_attempts`) speak against the prompt;
attempts that were lost with a worker or a table (`rollout.max_lost_attempts`) speak against the machines. A prompt
whose engines die is watched more closely: after some deaths it runs alone on an engine, and when that has died
twice, it is poison.
"""

from dataclasses import dataclass, replace

from cluster.errors import is_infrastructure
from cluster.worker import Worker

MAX_KILLS = 2
"""Engines that a prompt may kill while it is alone on them."""


@dataclass(eq=False)
class Refusal:
    """A call that failed on a living worker, with one or more prompts; it is blamed once at most."""

    worker: Worker | None
    reason: str
    is_blamed: bool = False


@dataclass(frozen=True)
class Failures:
    """What became of the earlier attempts."""

    num_refused: int = 0
    """Attempts that failed on a living worker."""
    num_lost: int = 0
    """Attempts lost with their worker, or with a table."""
    num_deaths: int = 0
    """Workers that died while they worked on it."""
    num_kills: int = 0
    """Of these, those that worked on nothing else."""
    num_cut_off: int = 0
    """Attempts that ended only because their worker was scaled away."""
    worker: Worker | None = None
    """Where the last one failed (None: lost after generation)."""
    refusal: Refusal | None = None
    """The last refusal."""

    @property
    def num_attempts(self) -> int:
        """All earlier attempts: the number of the next one."""
        return self.num_refused + self.num_lost + self.num_cut_off

    def after(self, error: BaseException, worker: Worker, refusal: Refusal, *, num_together: int) -> "Failures":
        """With one more attempt, which failed on the worker with this error; `num_together` in one call."""
        if worker.is_retired:
            return self.cut_off()
        if worker.is_gone:
            return self.died(worker, num_together)
        return self.lost() if is_infrastructure(error) else self.refused(refusal)

    def refused(self, refusal: Refusal) -> "Failures":
        """With one more attempt that failed on a living worker."""
        return replace(self, num_refused=self.num_refused + 1, worker=refusal.worker, refusal=refusal)

    def blame(self, succeeded_on: Worker) -> Refusal | None:
        """The refusal of what now succeeded on another worker; once for all prompts that were refused together."""
        refusal = self.refusal
        if refusal is None or refusal.is_blamed or refusal.worker in (None, succeeded_on):
            return None
        refusal.is_blamed = True
        return refusal

    def lost(self) -> "Failures":
        """With one more attempt whose tables are lost."""
        return replace(self, num_lost=self.num_lost + 1, worker=None)

    def died(self, worker: Worker, num_together: int) -> "Failures":
        """With one more attempt during which the worker died; `num_together` were lost in the same call."""
        was_alone = num_together == worker.uses_at_death.total() == 1
        return replace(
            self,
            num_lost=self.num_lost + 1,
            num_deaths=self.num_deaths + 1,
            num_kills=self.num_kills + was_alone,
            worker=worker,
        )

    def cut_off(self) -> "Failures":
        """With one more attempt that ended because its worker was scaled away."""
        return replace(self, num_cut_off=self.num_cut_off + 1)

    def verdict(self, *, max_refused: int, max_lost: int) -> str | None:
        """Why the prompt is to be given up, or None: poison, failed or lost."""
        if self.num_kills >= MAX_KILLS:
            return "poison"
        if self.num_refused >= max_refused:
            return "failed"
        return "lost" if self.num_lost >= max_lost else None


NO_FAILURES = Failures()
