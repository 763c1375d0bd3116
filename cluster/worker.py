"""One worker of a pool, as the controller sees it: its state, its weights, and what it works on.

`cluster/health.py` says which states there are and what leads from one to the next. A worker keeps its name when
its actor is replaced; one that is added has a new name.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.health import NEXT_STATES, Health, WorkerState
from settings.cluster import HealthConfig

WATCHED = frozenset({WorkerState.HEALTHY, WorkerState.SUSPECT, WorkerState.STALE, WorkerState.DRAINING})
"""States in which a worker must answer heartbeats."""

WANTED = frozenset(WorkerState) - {WorkerState.DRAINING, WorkerState.RETIRED}
"""States of a worker that is given work, or will be."""


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
    ended: "asyncio.Future[None] | None" = field(default=None, repr=False)  # of the actor: done once it is let go
    uses: Counter[str] = field(default_factory=Counter)  # what waits for an answer, by stage
    uses_at_death: Counter[str] = field(default_factory=Counter)
    pid: int = 0  # of the actor's process; 0 until it has started
    num_lives: int = 0  # actors so far
    golden_difference: float | None = None  # to the learner's log-probs, of its newest verified weights
    is_awaited: bool = False  # dead, and to be restarted
    pinned: Any = field(default=None, repr=False)  # weights kept to evaluate them: no slots meanwhile
    state: WorkerState = field(default=WorkerState.STARTING, init=False)
    health: Health = field(default_factory=lambda: Health(HealthConfig(), now=0.0), repr=False)

    def become(self, state: WorkerState) -> None:
        """Enter the next state; ValueError if it cannot follow the present one."""
        if state not in NEXT_STATES[self.state]:
            allowed = ", ".join(sorted(NEXT_STATES[self.state])) or "none"
            raise ValueError(f"{self.name} is {self.state} and cannot become {state} (possible: {allowed})")
        self.is_awaited = False
        self.state = state

    def must_answer(self, life: int) -> bool:
        """Whether it must answer in that life: late news of an earlier life says nothing about it."""
        return self.num_lives == life and self.state in WATCHED

    @property
    def is_wanted(self) -> bool:
        """True while it is given work, or will be."""
        return self.state in WANTED

    @property
    def is_starting(self) -> bool:
        """True until it may be given work."""
        return self.state is WorkerState.STARTING

    @property
    def is_healthy(self) -> bool:
        """True while it may be given work."""
        return self.state is WorkerState.HEALTHY

    @property
    def takes_slots(self) -> bool:
        """True while slots may be started on it: not while it is borrowed for an evaluation."""
        return self.is_healthy and self.pinned is None

    @property
    def is_gone(self) -> bool:
        """True while it has no actor: it has died (and may come back), or was retired."""
        return self.state in (WorkerState.DEAD, WorkerState.RETIRED)

    @property
    def loads_weights(self) -> bool:
        """True while it is to follow the newest weights."""
        return self.state in (WorkerState.HEALTHY, WorkerState.STALE, WorkerState.SUSPECT)

    @property
    def is_retired(self) -> bool:
        """True once it was retired: what it still held is no failure of its own."""
        return self.state is WorkerState.RETIRED

    @property
    def num_uses(self) -> int:
        """Streams, calls and loads that wait for an answer."""
        return self.uses.total()

    @property
    def is_idle(self) -> bool:
        """True while it has no work and nothing waits for an answer from it."""
        return self.num_uses == self.num_slots == self.num_calls == 0
