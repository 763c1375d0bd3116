"""One worker of a pool, as the controller sees it: its state, its weights, and what it works on.

    STARTING --> HEALTHY --> DRAINING --> RETIRED
        |           |            |
        '-----------'------------'--> DEAD          (STARTING --> RETIRED: no longer wanted before it served)

Only HEALTHY workers are given work. A DRAINING one finishes what it has. DEAD and RETIRED ones never come back: a
worker that is added has a new name.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    HEALTHY = "healthy"
    DRAINING = "draining"
    DEAD = "dead"
    RETIRED = "retired"


NEXT_STATES = {
    WorkerState.STARTING: {WorkerState.HEALTHY, WorkerState.DEAD, WorkerState.RETIRED},
    WorkerState.HEALTHY: {WorkerState.DRAINING, WorkerState.DEAD, WorkerState.RETIRED},
    WorkerState.DRAINING: {WorkerState.DEAD, WorkerState.RETIRED},
    WorkerState.DEAD: set(),
    WorkerState.RETIRED: set(),
}
"""The states that may follow each state."""


@dataclass(eq=False)
class Worker:
    """One actor of a pool; `handle` and `placement` are None until it is placed, `placement` again at its end."""

    name: str
    handle: Any = None
    placement: Any = None  # PlacementGroup
    node: str = ""  # name of the node it was placed on
    node_id: str = ""
    version: int = -1  # weight version it has confirmed; -1: none yet
    num_slots: int = 0  # being generated
    num_calls: int = 0  # scoring calls
    outstanding_tokens: int = 0  # in scoring calls
    num_uses: int = 0  # streams, calls and loads that wait for an answer
    state: WorkerState = field(default=WorkerState.STARTING, init=False)

    def become(self, state: WorkerState) -> None:
        """Enter the next state; ValueError if it cannot follow the present one."""
        if state not in NEXT_STATES[self.state]:
            allowed = ", ".join(sorted(NEXT_STATES[self.state])) or "none"
            raise ValueError(f"{self.name} is {self.state} and cannot become {state} (possible: {allowed})")
        self.state = state

    @property
    def is_starting(self) -> bool:
        """True until it may be given work."""
        return self.state is WorkerState.STARTING

    @property
    def is_healthy(self) -> bool:
        """True while it may be given work."""
        return self.state is WorkerState.HEALTHY

    @property
    def is_gone(self) -> bool:
        """True once it has died or was retired."""
        return self.state in (WorkerState.DEAD, WorkerState.RETIRED)

    @property
    def is_retired(self) -> bool:
        """True once it was retired: what it still held is no failure of its own."""
        return self.state is WorkerState.RETIRED

    @property
    def is_idle(self) -> bool:
        """True while it has no work and nothing waits for an answer from it."""
        return self.num_uses == self.num_slots == self.num_calls == 0
