"""What every stage of a run is given: its settings and workers, what wakes it, and where it writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cluster.pool import Pool
from cluster.waiting import Signal
from records.events import Events
from records.run_folder import RunFolder
from settings.run import RunConfig


@dataclass(frozen=True)
class RunContext:
    """One run, from its first worker to its end."""

    config: RunConfig
    pools: Mapping[str, Pool]
    """By role."""
    signal: Signal
    """Told of every change of the run's state."""
    members: Signal
    """Told of new weight versions and of workers' states; `signal` is told of these too."""
    events: Events
    folder: RunFolder

    @classmethod
    def of(cls, config: RunConfig, pools: Mapping[str, Pool], folder: RunFolder, events: Events) -> Self:
        """With signals of its own, which hear of the workers' states from the pools."""
        signal = Signal()
        members = Signal(of=signal)
        for pool in pools.values():
            pool.signal = members
        return cls(config, pools, signal, members, events, folder)
