"""Where a run stands: what a checkpoint stores of the controller, how a run is restored from it, and how often a
lost learner is restarted.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from cluster.health import backoff_s
from cluster.waiting import now
from controller.learner_group import LearnerGroup, LearnerLostError
from controller.rollouts import Prompts
from records.checkpoint_store import CheckpointStore, FoundCheckpoint
from records.checkpoints import BEGINNING, DamagedCheckpointError, Frontier
from records.events import Events
from records.run_folder import RunFolder
from settings.cluster import HealthConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The trained frontier, the incarnation, and the prompts that replaced given-up ones by slot."""

    frontier: Frontier = BEGINNING
    incarnation: int = 0
    replacements: dict[int, int] = field(default_factory=dict)

    @property
    def saved_version(self) -> int | None:
        """The version of the checkpoint that a run was restored from; None if it begins at its start."""
        return self.frontier.version or None

    def to_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        return {
            "version": self.frontier.version,
            "lowest_untrained": self.frontier.lowest_untrained,
            "trained_above": list(self.frontier.trained_above),
            "cuts": [list(cut) for cut in self.frontier.cuts],
            "incarnation": self.incarnation,
            "replacements": {str(slot): position for slot, position in self.replacements.items()},
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """The stored progress."""
        cuts = tuple((version, size) for version, size in state.get("cuts", ()))
        frontier = Frontier(state["version"], state["lowest_untrained"], tuple(state["trained_above"]), cuts)
        replacements = {int(slot): position for slot, position in state["replacements"].items()}
        return cls(frontier, state["incarnation"], replacements)


async def restore(
    learner: LearnerGroup,
    store: CheckpointStore,
    folder: RunFolder,
    events: Events,
    *,
    prompts: Prompts,
    reason: str = "--resume",
    above: int = 0,
) -> Progress:
    """Load the newest good checkpoint into the learner; the ledger says what counts, and a new incarnation begins.

    Without any committed checkpoint the run begins anew: the learner must be as it was set up. The incarnation
    returned is above the stored one and `above`. `prompts` takes the stored replacements. RuntimeError if
    checkpoints were committed and none is good. Nothing may be being saved meanwhile.
    """
    damaged = folder.ledger_rows.mend()
    if damaged:
        aside = str(folder.ledger.with_suffix(".damaged"))
        events.add("ledger_damaged", lines=damaged, set_aside=aside, reason="damaged lines")
    found = await asyncio.to_thread(newest_good, store, folder, events)
    prompts.replacements.clear()
    if found is None:
        folder.roll_back_to(0)
        events.add("resumed", step=0, reason=f"{reason}; no checkpoint was committed")
        return Progress(incarnation=above + 1)
    path = str(found.path.resolve())
    seconds = await learner.load_checkpoint(path)
    if seconds:
        events.add("checkpoint_converted", path=path, seconds=round(seconds, 3), reason="other learner ranks")
    stored = Progress.from_json(found.manifest.client_state)
    prompts.replacements.update(stored.replacements)
    _mend_ledger(stored.frontier, folder, events, prompts)
    events.add("resumed", step=stored.frontier.version, reason=reason, checkpoint=path)
    return Progress(stored.frontier, max(stored.incarnation, above) + 1, stored.replacements)


def newest_good(store: CheckpointStore, folder: RunFolder, events: Events) -> FoundCheckpoint | None:
    """Return the newest checkpoint that is whole, and set newer ones aside; None if there never was one.

    RuntimeError naming the damaged ones, and touching none, if all are. Every byte is read.
    """
    store.recover()
    damaged: dict[int, str] = {}
    for step in reversed(store.steps()):
        try:
            found = store.fetch(step)
        except DamagedCheckpointError as error:
            damaged[step] = f"{store.place_of(step)}: {error}"
            logger.warning("checkpoint %s", damaged[step])
            events.add("checkpoint_damaged", path=store.place_of(step), reason=str(error))
            continue
        for newer in damaged:  # else, readable again some day, they would contradict the ledger
            store.set_aside(newer)
        return found
    if damaged:
        raise RuntimeError(f"no checkpoint of the run is good: {'; '.join(damaged.values())}")
    committed = [row for row in folder.event_rows() if row["event"] == "checkpoint"]
    if committed:
        raise RuntimeError(
            f"{store.place} holds no checkpoint, but {len(committed)} were committed, the last as "
            f"{committed[-1].get('path')}"
        )
    return None


def _mend_ledger(frontier: Frontier, folder: RunFolder, events: Events, prompts: Prompts) -> None:
    """Void the ledger's rows beyond the frontier, and make those anew that are lost before it."""

    def uids_of(slots: list[int]) -> list[str]:
        return prompts.requests_for(slots, [0] * len(slots)).column("uid").to_pylist()

    folder.roll_back_to(frontier.version)
    restored = folder.ledger_rows.restore(frontier, uids_of)
    if restored:
        events.add("ledger_restored", steps=restored, reason="rows were lost")


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
