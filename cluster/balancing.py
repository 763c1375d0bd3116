"""From metrics rows to decisions: gathers readings while no worker comes or goes, and asks `cluster/balance.py`.

No Ray and no asyncio: the stage that carries decisions out is `cluster/balancer.py`.
"""

from collections.abc import Mapping
from typing import Any

from cluster.balance import Counts, Decision, Memory, decide, remember
from cluster.readings import Reading, average, read
from settings.cluster import BalanceConfig, Limits


class Balancing:
    """What the balance knows of a run; tell it of every step."""

    def __init__(self, config: BalanceConfig, batch_size: int) -> None:
        self._config = config
        self._batch_size = batch_size
        self._rows: list[Mapping[str, Any]] = []
        self._readings: list[Reading] = []
        self._counts: Counts = {}
        self._quiet_until_s = 0.0
        self.memory = Memory()

    def disturb(self, now_s: float) -> None:
        """Note that workers come or go: what was read since the last change says nothing of the next."""
        self._rows, self._readings = [], []
        self._quiet_until_s = now_s + self._config.cooldown_s

    def note(self, row: Mapping[str, Any], counts: Counts, limits: Limits, now_s: float) -> Decision | None:
        """Take in the metrics row of a step with `counts` healthy workers; returns a change to make, if any.

        Who makes it calls `disturb` until its workers serve or have ended.
        """
        if dict(counts) != dict(self._counts):
            self._counts = dict(counts)
            self._rows, self._readings = [], []
        if now_s < self._quiet_until_s:
            return None
        self._rows.append(row)
        if sum(each["time/step_s"] for each in self._rows) < self._config.every_s:
            return None
        reading = read(self._rows, self._batch_size, [*counts])
        self._rows = []
        if reading is None:
            return None
        self._readings = [*self._readings, reading][-self._config.readings :]
        if len(self._readings) < self._config.readings:
            return None
        self.memory = remember(self.memory, counts, average(self._readings))
        return decide(self._readings, counts, limits, self.memory, self._config)
