"""Where a run stands: what a checkpoint stores of the controller, and where a resumed run begins."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.events import Events
from cluster.learner_group import LearnerGroup
from cluster.run_folder import RunFolder
from cluster.slots import BEGINNING, Frontier


@dataclass(frozen=True)
class Progress:
    """The trained frontier, the course of the run, and the prompts that replaced given-up ones by slot."""

    frontier: Frontier = BEGINNING
    incarnation: int = 0
    replacements: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        return {
            "version": self.frontier.version,
            "lowest_untrained": self.frontier.lowest_untrained,
            "trained_above": list(self.frontier.trained_above),
            "incarnation": self.incarnation,
            "replacements": {str(slot): position for slot, position in self.replacements.items()},
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """The stored progress."""
        frontier = Frontier(state["version"], state["lowest_untrained"], tuple(state["trained_above"]))
        replacements = {int(slot): position for slot, position in state["replacements"].items()}
        return cls(frontier, state["incarnation"], replacements)


async def restore(
    learner: LearnerGroup,
    checkpoint: Path | None,
    folder: RunFolder,
    events: Events,
    *,
    reason: str = "--resume",
    above: int = 0,
) -> Progress:
    """Load a checkpoint into the learner and void what the ledger holds beyond it.

    A new incarnation begins: greater than the stored one and than `above`.
    """
    if checkpoint is None:
        folder.roll_back_to(0)
        events.add("resumed", step=0, reason=f"{reason}; no checkpoint was committed")
        return Progress(incarnation=above + 1)
    stored = Progress.from_json(await learner.load_checkpoint(str(checkpoint.resolve())))
    folder.roll_back_to(stored.frontier.version)
    events.add("resumed", step=stored.frontier.version, reason=reason, checkpoint=str(checkpoint))
    return Progress(stored.frontier, max(stored.incarnation, above) + 1, stored.replacements)
