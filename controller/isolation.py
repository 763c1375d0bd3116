"""Prompts that were there when engines died run alone on one, to tell the poisonous from the unlucky.

One engine at a time is reserved for them: it is given nothing else, and takes them one after the other.
"""

from collections.abc import Callable, Sequence

from cluster.worker import Worker

GENERATING = "generate"
"""The stage of a worker's use that a stream of rollouts is."""

ISOLATED_AFTER = 2
"""Deaths of engines after which a slot runs alone: with one, too many are merely unlucky."""


class Isolation:
    """Chooses the engine on which suspicious slots run alone, while there are any."""

    def __init__(self, num_deaths: Callable[[int], int]) -> None:
        """`num_deaths(slot)`: engines that died while they worked on it."""
        self._num_deaths = num_deaths
        self.worker: Worker | None = None
        """The reserved engine; no other slot may start on it."""

    def needs(self, slot: int) -> bool:
        """Whether the slot runs alone."""
        return self._num_deaths(slot) >= ISOLATED_AFTER

    def reserve(self, startable: Sequence[int], eligible: Sequence[Worker]) -> None:
        """Reserve the least loaded engine if one of the startable slots needs it; else free the one reserved."""
        reserved = self.worker
        if not any(self.needs(slot) for slot in startable):
            self.worker = reserved if reserved is not None and reserved.num_slots and reserved.is_healthy else None
        elif reserved not in eligible:
            self.worker = min(eligible, key=lambda worker: worker.num_slots, default=None)

    def take(self) -> Worker | None:
        """The reserved engine if nothing is generated on it, and no stream waits for its end."""
        worker = self.worker
        return worker if worker is not None and worker.num_slots == worker.uses[GENERATING] == 0 else None
