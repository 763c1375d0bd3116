"""Settings of the Ray cluster, of fault handling, and of the automatic balance of the pools with its limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from settings.engine import MAX_WORKERS, Count, Gib, NonNegative, Positive, Seconds, Section

Margin = Annotated[float, Field(gt=0, le=1)]


class RangeConfig(Section):
    """Size limits of a pool under automatic balance."""

    min_workers: Count = 1
    """Minimum number of workers."""
    max_workers: Count | None = None
    """Maximum number of workers; by default what `balance.max_total` leaves, or without it the pool's
    num_workers."""


class BalanceConfig(Section):
    """Automatic balance: moves workers to the pool that limits throughput, while the run continues."""

    enabled: bool = False
    """Balance the pools. Refused with max_staleness 0, where the stages take turns."""
    max_total: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Maximum number of workers in all pools together, learner ranks excluded: for pools that share devices. By
    default limited only by the cluster and the maxima of the pools."""
    shrink: bool = True
    """Retire workers that a pool does not need to keep up with the learner (or the slowest pool)."""
    every_s: Seconds = 20.0
    """Minimum time covered by one reading."""
    readings: Positive = 3
    """Consecutive readings that must call for the same change."""
    margin: Margin = 0.1
    """Minimum speed-up, as a fraction, that justifies a change."""
    cooldown_s: Annotated[float, Field(ge=0, le=1e8)] = 60.0
    """Pause between readings after a change has taken effect."""
    max_change: Count = 4
    """Maximum number of workers that one decision adds to a pool or retires from it."""
    request_nodes: bool = True
    """When the cluster is full, ask Ray's autoscaler for nodes; otherwise, retire workers of one pool before
    adding to another. A local Ray has no autoscaler."""
    rollout: RangeConfig = RangeConfig()
    """Limits of the rollout pool."""
    teacher: RangeConfig = RangeConfig()
    """Limits of the teacher pool."""
    teachers: dict[str, RangeConfig] = Field(default={})
    """Limits of the pools of additional teachers, by name."""
    reference: RangeConfig = RangeConfig()
    """Limits of the reference pool."""

    def range_of(self, role: str) -> RangeConfig:
        """Limits of a pool by its role (`teacher-NAME` for additional teachers)."""
        if role.startswith("teacher-"):
            return self.teachers.get(role.removeprefix("teacher-"), RangeConfig())
        return {"rollout": self.rollout, "teacher": self.teacher, "reference": self.reference}[role]


@dataclass(frozen=True)
class Limits:
    """Minimum and maximum number of workers of each pool, by role."""

    low: Mapping[str, int]
    high: Mapping[str, int]
    max_total: int | None = None


def limits_of(config: BalanceConfig, counts: Mapping[str, int]) -> Limits:
    """Limits of a run that starts with `counts` workers; ValueError names the wrong field."""
    _check_names(config, counts)
    low = {role: config.range_of(role).min_workers for role in counts}
    if config.max_total is not None and sum(counts.values()) > config.max_total:
        parts = " + ".join(f"{count} {role}" for role, count in counts.items())
        total = sum(counts.values())
        raise ValueError(
            f"balance.max_total must be >= {total} ({parts} workers at the start), got {config.max_total} "
            f"(nearest valid: {total})"
        )
    high = {role: _high(config, role, low, counts) for role in counts}
    for role, count in counts.items():
        _check_range(config, role, count, high[role])
    return Limits(low, high, config.max_total)


def _high(config: BalanceConfig, role: str, low: Mapping[str, int], counts: Mapping[str, int]) -> int:
    given = config.range_of(role).max_workers
    if given is not None:
        return given
    if config.max_total is not None:
        return min(max(config.max_total - sum(low.values()) + low[role], low[role]), MAX_WORKERS)
    return max(counts[role], low[role])


def _check_range(config: BalanceConfig, role: str, count: int, high: int) -> None:
    field, given = field_of_range(role), config.range_of(role)
    if given.max_workers is not None and given.min_workers > given.max_workers:
        raise ValueError(
            f"{field}.min_workers must be <= {field}.max_workers ({given.max_workers}), got {given.min_workers} "
            f"(nearest valid: {given.max_workers})"
        )
    if not given.min_workers <= count <= high:
        nearest = min(max(count, given.min_workers), high)
        raise ValueError(
            f"{_field_of(role)}.num_workers must be within {field}.min_workers and max_workers "
            f"({given.min_workers}..{high}), got {count} (nearest valid: {nearest})"
        )


def field_of_range(role: str) -> str:
    """The section that holds the limits of a pool: `balance.teachers.code` of `teacher-code`."""
    return f"balance.{_field_of(role)}"


def _field_of(role: str) -> str:
    return role.replace("teacher-", "teachers.", 1)


def _check_names(config: BalanceConfig, counts: Mapping[str, Any]) -> None:
    known = [role.removeprefix("teacher-") for role in counts if role.startswith("teacher-")]
    for name in config.teachers:
        if name not in known:
            raise ValueError(
                f"balance.teachers.{name}: there is no such teacher (nearest valid: {', '.join(known) or 'none'})"
            )


class ClusterConfig(Section):
    """The Ray cluster, placement, and time limits."""

    address: str | None = None
    """Address of a Ray cluster (`auto`, `HOST:6379`, `ray://...`); by default RAY_ADDRESS or a local Ray."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local Ray; by default all of the machine."""
    object_store_gib: Gib = 1.0
    """Size of the object store of a local Ray, in GiB."""
    dashboard: bool = False
    """Start the dashboard of a local Ray, on port 8265."""
    dashboard_host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:_-]{1,253}$")] = "127.0.0.1"
    """Address that the dashboard of a local Ray listens on. On any but a loopback address other machines can reach
    it, and its pages, though not its jobs API, need no token."""
    learner_strategy: Literal["pack", "strict_pack", "spread"] = "pack"
    """How to place the learner's ranks: pack onto few nodes, strict_pack onto exactly one, or spread over many."""
    teacher_strategy: Literal["pack", "spread"] = "pack"
    """How to place the workers of each teacher and of the reference: pack onto few nodes, or spread over many."""
    rollout_strategy: Literal["pack", "spread"] = "spread"
    """How to place the rollout workers: pack onto few nodes, or spread over many."""
    placement_timeout_s: Seconds = 300.0
    """Maximum time to wait for the cluster to provide resources. If nodes are started on demand, set it above
    their start-up time."""
    grows: bool | None = None
    """Whether nodes are added on demand: if so, a worker that fits on no current node is waited for, not refused.
    By default true if the head was started for Ray's autoscaler v2."""
    start_timeout_s: Seconds = 900.0
    """Maximum time for engines and ranks to start."""
    rollout_timeout_s: Seconds = 1800.0
    """Maximum time to wait for the next finished rollout."""
    score_timeout_s: Seconds = 600.0
    """Maximum time for a scoring call."""
    step_timeout_s: Seconds = 1800.0
    """Maximum time for a training step, publish or checkpoint; it also detects a frozen rank."""
    load_timeout_s: Seconds = 600.0
    """Maximum time for an engine to load weights."""
    drain_timeout_s: Seconds = 120.0
    """Maximum time for a worker being scaled down to finish its requests; other workers take over the rest."""


Backoff = Annotated[float, Field(gt=0, le=3600)]


class HealthConfig(Section):
    """When a worker is suspected, when it is replaced, and when the run fails."""

    heartbeat_s: Seconds = 5.0
    """Interval between heartbeats, which report that a worker is alive and its engine's progress."""
    suspect_after_s: Seconds = 15.0
    """A worker that has not answered for this long gets no new work until it answers again."""
    dead_after_s: Seconds = 60.0
    """A worker or learner rank that has not answered for this long (frozen, unreachable) is killed and
    replaced."""
    stall_after_s: Seconds = 300.0
    """An engine that has work and answers, but generates no token for this long, is killed and replaced."""
    max_failed_requests: Positive = 5
    """An engine is replaced after this many consecutive requests that failed on it but succeeded on another."""
    max_restarts: NonNegative = 6
    """Maximum restarts of one worker without a request served in between, before it is given up. The run fails
    when a pool has no worker left."""
    no_worker_after_s: Seconds = 1800.0
    """The run fails when a pool has had no available worker for this long."""
    backoff_s: Backoff = 1.0
    """Delay before the first restart of a worker or of the learner; it doubles with each consecutive restart."""
    max_backoff_s: Backoff = 60.0
    """Maximum delay before a restart."""
    max_learner_restarts: NonNegative = 3
    """Maximum restarts of the learner without a new step in between, before the run fails."""
    max_skipped_steps: Positive = 3
    """The run saves a checkpoint and stops after this many consecutive steps without a finite gradient."""

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if not self.heartbeat_s < self.suspect_after_s < self.dead_after_s:
            raise ValueError(
                "health.heartbeat_s < health.suspect_after_s < health.dead_after_s must hold, got "
                f"{self.heartbeat_s:g}, {self.suspect_after_s:g}, {self.dead_after_s:g} (nearest valid: "
                f"{self.heartbeat_s:g}, {3 * self.heartbeat_s:g}, {12 * self.heartbeat_s:g})"
            )
        if self.backoff_s > self.max_backoff_s:
            raise ValueError(
                f"health.backoff_s must be <= health.max_backoff_s ({self.max_backoff_s:g}), "
                f"got {self.backoff_s:g}"
            )
        return self
