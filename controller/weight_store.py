"""The current weights, by reference, and the loaders that bring every student engine up to them.

Each engine follows at its own pace: it loads the newest version when it has finished the one before, and skips
those it missed. References of older versions are dropped, which frees them. A STALE engine (added, restarted, or
from before a fall-back of the learner) serves once it has loaded and verified the newest version.
"""

import asyncio
import logging
from dataclasses import dataclass

from ray.exceptions import RayError

from cluster.health import WorkerState
from cluster.pool import Pool
from cluster.waiting import NO_LIMIT_S, Signal, now, wait_for
from cluster.worker import Worker
from records.events import Events, reason_of
from settings.cluster import ClusterConfig
from transport.notes import LoadReport
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest

logger = logging.getLogger(__name__)

MAX_LOAD_ATTEMPTS = 2
"""A failed load is repeated once from the start; then the engine is given up."""


@dataclass(frozen=True)
class PublishedWeights:
    """A weight set, and where engines get its bytes."""

    manifest: WeightManifest
    source: WeightSource
    publish_s: float


LOAD_PARTS = ("fetch_s", "check_s", "pause_s", "load_s", "verify_s")


class WeightStore:
    """Holds the newest weights and keeps the rollout pool loading them."""

    def __init__(
        self, pool: Pool, *, config: ClusterConfig, signal: Signal, members: Signal, events: Events
    ) -> None:
        """`members`: told of new versions and of workers' states, but not of every load, as `signal` is."""
        self._pool = pool
        self._members = members
        self._config = config
        self._signal = signal
        self._events = events
        self._latest: PublishedWeights | None = None
        self._last_load: dict[str, float] = dict.fromkeys(
            (*LOAD_PARTS, "stopped_s", "update_s", "bytes_fetched"), 0.0
        )

    @property
    def version(self) -> int:
        """The newest published version; -1 before the first."""
        return -1 if self._latest is None else self._latest.manifest.version

    @property
    def latest(self) -> PublishedWeights | None:
        """The newest published version; whoever keeps it keeps its bytes in the object store."""
        return self._latest

    def pin(self, weights: PublishedWeights) -> None:
        """Let every engine load this set, whatever it has loaded before: not older than that, or refused."""
        for worker in self._pool.workers:
            worker.version = -1
        self._latest = weights
        self._members.changed()

    def unpin(self) -> None:
        """Drop the reference; engines stay with what they have."""
        self._latest = None

    def publish(self, weights: PublishedWeights) -> None:
        """Make a weight set the newest; engines start loading it."""
        self._latest = weights
        manifest = weights.manifest
        self._events.add(
            "weights_published",
            version=manifest.version,
            incarnation=manifest.incarnation,
            bytes=manifest.total_bytes,
            base_version=manifest.base_version,
            difference_bytes=manifest.total_difference_bytes,
            seconds=round(weights.publish_s, 4),
        )
        self._members.changed()

    def invalidate(self) -> None:
        """Weights of an abandoned incarnation count no more: every engine waits for others."""
        self._latest = None
        for worker in self._pool.workers:
            if worker.loads_weights and worker.state is not WorkerState.STALE:
                self._pool.make_stale(worker)

    def metrics(self) -> dict[str, float]:
        """Bytes of the newest version, and seconds and bytes of the newest completed load of any engine."""
        seconds = {f"time/{name}": value for name, value in self._last_load.items() if name.endswith("_s")}
        manifest = None if self._latest is None else self._latest.manifest
        return seconds | {
            "weights/bytes": 0 if manifest is None else manifest.total_bytes,
            "weights/difference_bytes": 0 if manifest is None else manifest.total_difference_bytes,
            "weights/bytes_fetched": self._last_load["bytes_fetched"],
        }

    async def run(self) -> None:
        """Let every engine follow as long as the pipeline runs."""
        followed: set[Worker] = set()
        async with asyncio.TaskGroup() as loaders:
            while True:
                found = await self._members.until(
                    lambda: [w for w in self._pool.workers if w.loads_weights and w not in followed],
                    timeout_s=NO_LIMIT_S,
                    what=lambda: "further student engines (there need be none)",
                )
                followed.update(found)
                for worker in found:
                    following = loaders.create_task(self._follow(worker))
                    following.add_done_callback(lambda _, worker=worker: followed.discard(worker))

    async def all_loaded(self) -> None:
        """Wait until every healthy engine holds the newest version."""
        await self._signal.until(
            lambda: all(worker.version == self.version for worker in self._pool.healthy),
            timeout_s=NO_LIMIT_S,
            what=lambda: f"weights v{self.version} on all engines",
        )

    async def _follow(self, worker: Worker) -> None:
        """Keep one engine at the newest version until it is gone."""
        while worker.loads_weights:
            await self._members.until(
                lambda: not worker.loads_weights or self._is_behind(worker),
                timeout_s=NO_LIMIT_S,
                what=lambda: f"newer weights for {worker.name}",
            )
            reason = await self._load(worker) if worker.loads_weights else None
            if reason is not None:
                self._pool.mark_dead(worker, reason)

    def _wanted(self, worker: Worker) -> PublishedWeights | None:
        """What a worker is to hold: the newest, or what it is borrowed to evaluate."""
        return self._latest if worker.pinned is None else worker.pinned

    def _is_behind(self, worker: Worker) -> bool:
        wanted = self._wanted(worker)
        return wanted is not None and worker.version < wanted.manifest.version

    async def _load(self, worker: Worker) -> str | None:
        """Load what the worker is to hold; returns why it could not be loaded, or None."""
        with self._pool.use(worker, "load weights"):
            return await self._load_in_attempts(worker)

    async def _load_in_attempts(self, worker: Worker) -> str | None:
        reason = ""
        for attempt in range(MAX_LOAD_ATTEMPTS):
            weights = self._wanted(worker)
            if weights is None:
                return None
            start, version = now(), weights.manifest.version
            try:
                report: LoadReport = await wait_for(
                    worker.handle.load_weights.remote(weights.manifest, weights.source),
                    timeout_s=self._config.load_timeout_s,
                    what=f"{worker.name} loading weights v{version}",
                    ended=worker.ended,
                )
            except (RayError, TimeoutError) as error:
                if not worker.loads_weights:
                    return None
                reason = f"weights v{version} could not be loaded: {reason_of(error)}"
                self._events.add("weights_failed", worker=worker.name, attempt=attempt, reason=reason_of(error))
                continue
            wanted = self._wanted(worker)
            if wanted is not None and report.incarnation == wanted.manifest.incarnation:
                self._note_loaded(worker, report, weights.publish_s, now() - start)
            return None
        return reason

    def _note_loaded(self, worker: Worker, report: LoadReport, publish_s: float, update_s: float) -> None:
        worker.version = report.version
        worker.golden_difference = report.golden_difference
        parts = {name: getattr(report, name) for name in LOAD_PARTS}
        parts |= {"stopped_s": report.pause_s + report.load_s + report.verify_s, "update_s": update_s}
        self._last_load = {**parts, "bytes_fetched": report.bytes_fetched}
        self._events.add(
            "weights_loaded",
            worker=worker.name,
            version=report.version,
            incarnation=report.incarnation,
            seconds=round(update_s, 4),
            **{name: round(parts[name], 4) for name in (*LOAD_PARTS, "stopped_s")},
            publish_s=round(publish_s, 4),
            bytes_fetched=report.bytes_fetched,
            golden_difference=round(report.golden_difference, 6),
        )
        if worker.state is WorkerState.STALE:
            self._pool.admit(worker)
        self._signal.changed()
