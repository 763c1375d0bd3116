"""The stage that balances the pools: it notes every step and carries out what `cluster/pool_sizes.py` decides.

Where the cluster has capacity, or can be asked for nodes, all changes of a decision begin together; elsewhere
workers are retired first, and others are added once those have ended.
"""

import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError

from cluster.autoscaling import Cluster
from cluster.placement import Bundle
from cluster.pool import Pool
from cluster.pool_sizes import Counts, Decision, PoolSizes
from cluster.scaling import Scaling
from cluster.waiting import NO_LIMIT_S, Signal, now
from cluster.worker import WorkerState
from records.events import Events, reason_of
from settings.cluster import Limits, limits_of
from settings.run import RunConfig

logger = logging.getLogger(__name__)

REASON = "balance"


class Balancer:
    """Balances the pools of engines of a run; does nothing unless `balance.enabled`."""

    def __init__(
        self,
        config: RunConfig,
        *,
        pools: Mapping[str, Pool],
        scaling: Scaling,
        cluster: Cluster,
        signal: Signal,
        events: Events,
    ) -> None:
        self._is_enabled = config.balance.enabled
        self._all_pools = pools
        self._pools = {role: pools[role] for role in config.workers_of_role}
        self._scaling = scaling
        self._cluster = cluster
        self._signal = signal
        self._events = events
        self._sizes = PoolSizes(config.balance, config.batch_size)
        self._limits = limits_of(config.balance, config.workers_of_role) if self._is_enabled else None
        self._rows: deque[tuple[Mapping[str, Any], dict[str, int], float]] = deque()
        self._is_changing = False
        self._has_requested = False
        self._num_that_fit: int | None = None  # workers in all pools, once some could not be placed
        self.last_reason: str | None = None

    def note(self, row: Mapping[str, Any]) -> None:
        """Take in the metrics row of a step."""
        if self._limits is None:
            return
        if self._is_changing or self._is_unsettled():
            self._rows.clear()
            self._sizes.disturb(now())
            return
        self._rows.append((row, self._counts(), now()))
        self._signal.changed()

    async def _next_decision(self, limits: Limits) -> Decision:
        """Take in the rows of steps, with what the cluster has free now, until they lead to a decision."""
        while True:
            row, counts, at = await self._signal.until(
                lambda: self._rows[0] if self._rows else None,
                timeout_s=NO_LIMIT_S,
                what=lambda: "a reason to change the number of workers (there need be none)",
            )
            try:
                limits_now = await self._limits_now(limits, counts)
            except (RayError, TimeoutError) as error:
                logger.info("not balanced: %s", reason_of(error))
                self._rows.clear()
                continue
            if self._rows:  # else they were disturbed meanwhile
                self._rows.popleft()
                decision = self._sizes.note(row, counts, limits_now, at)
                if decision is not None:
                    self._rows.clear()
                    return decision

    async def run(self) -> None:
        """Carry out decisions as long as the pipeline runs; what was asked of the autoscaler is withdrawn."""
        if self._limits is None:
            return
        try:
            while True:
                decision = await self._next_decision(self._limits)
                self._is_changing = True
                try:
                    await self._carry_out(decision)
                except (RayError, TimeoutError) as error:
                    logger.warning("not balanced: %s", reason_of(error))
                self._is_changing = False
                self._sizes.disturb(now())
        finally:
            if self._has_requested:
                with suppress(RayError, TimeoutError):
                    await self._cluster.request([])

    async def _carry_out(self, decision: Decision) -> None:
        if self._counts() != dict(decision.before):
            logger.info("not balanced: the number of workers has changed meanwhile")
            return
        self.last_reason = decision.reason
        self._events.add(
            "balanced",
            **{"from": dict(decision.before), "to": dict(decision.after)},
            reason=decision.reason,
            numbers=dict(decision.numbers),
        )
        grown = {role: count for role, count in decision.changes.items() if count > decision.before[role]}
        shrunk = {role: count for role, count in decision.changes.items() if count < decision.before[role]}
        must_wait = not await self._has_capacity(grown) and not await self._request(decision.after)
        self._resize(shrunk, decision.reason)
        if shrunk and must_wait:
            await self._settled("what retired workers have in flight")
        self._resize(grown, decision.reason)
        await self._settled("added workers")
        counts = self._counts()
        if any(counts[role] < count for role, count in grown.items()):
            self._num_that_fit = sum(counts.values())

    def _resize(self, counts: Counts, reason: str) -> None:
        for role, count in counts.items():
            self._scaling.resize(role, count, f"{REASON}: {reason}")

    async def _settled(self, what: str) -> None:
        """Wait until no worker starts or drains; each of them has a limit of its own."""
        await self._signal.until(lambda: not self._is_unsettled(), timeout_s=NO_LIMIT_S, what=lambda: what)

    def _is_unsettled(self) -> bool:
        moving = (WorkerState.STARTING, WorkerState.DRAINING)
        return any(worker.state in moving for pool in self._pools.values() for worker in pool.workers)

    def _counts(self) -> dict[str, int]:
        return {role: len(pool.wanted) for role, pool in self._pools.items()}

    # -- capacity --

    async def _limits_now(self, limits: Limits, counts: Counts) -> Limits:
        """The limits, with what the cluster holds where it cannot be asked for more."""
        if self._cluster.may_grow and self._num_that_fit is None:
            return limits
        free = await self._cluster.free()
        fitting = {role: num_fitting(pool.demand.bundle, free) for role, pool in self._pools.items()}
        if any(fitting.values()):
            self._num_that_fit = None  # nodes have come, or other work has gone
        max_total = _smaller(limits.max_total, self._num_that_fit)
        if self._cluster.may_grow:
            return Limits(limits.low, limits.high, max_total)
        if len({tuple(sorted(pool.demand.bundle.items())) for pool in self._pools.values()}) == 1:
            total = sum(counts.values()) + min(fitting.values())
            return Limits(limits.low, limits.high, _smaller(max_total, total))
        high = {role: min(limits.high[role], counts[role] + fitting[role]) for role in counts}
        return Limits(limits.low, limits.high if limits.max_total is not None else high, max_total)

    async def _has_capacity(self, grown: Counts) -> bool:
        """True if the cluster could hold what is added."""
        free, counts = await self._cluster.free(), self._counts()
        total: dict[str, float] = {}
        for role, count in grown.items():
            for name, amount in self._pools[role].demand.bundle.items():
                total[name] = total.get(name, 0.0) + amount * (count - counts[role])
        return all(free.get(name, 0.0) + 1e-6 >= amount for name, amount in total.items())

    async def _request(self, after: Counts) -> bool:
        """Ask for nodes for all workers that are wanted; False if the cluster does not grow."""
        if not self._cluster.may_grow:
            return False
        wanted = {role: len(pool.wanted) for role, pool in self._all_pools.items()} | dict(after)
        bundles: list[Bundle] = []
        for role, count in wanted.items():
            bundles += [self._all_pools[role].demand.bundle] * count
        await self._cluster.request(bundles)
        self._has_requested = True
        self._events.add("nodes_requested", workers=dict(after), bundles=len(bundles))
        return True


def num_fitting(bundle: Mapping[str, float], free: Mapping[str, float]) -> int:
    """How many bundles the free resources of the whole cluster hold at most."""
    return max(0, min(int((free.get(name, 0.0) + 1e-6) / amount) for name, amount in bundle.items()))


def _smaller(one: int | None, other: int | None) -> int | None:
    given = [number for number in (one, other) if number is not None]
    return min(given, default=None)
