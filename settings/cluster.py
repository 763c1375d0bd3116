"""Settings of the automatic balance of the pools, and the limits that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from settings.engine import Gib, NonNegative, Positive, Seconds, Section

Margin = Annotated[float, Field(gt=0, le=1)]


class RangeConfig(Section):
    """How small and how large the balance may make a pool."""

    min_workers: Positive = 1
    """The pool never gets fewer workers than this."""
    max_workers: Positive | None = None
    """The pool never gets more; by default what `balance.max_total` leaves, without that its num_workers."""


class BalanceConfig(Section):
    """Automatic balance: workers are moved to the pool that limits the run, while it goes on."""

    enabled: bool = False
    """Balance the pools. Runs with max_staleness 0 are refused: their stages take turns."""
    max_total: Positive | None = None
    """Most workers of all pools together, learner ranks apart: where they share devices. By default the cluster
    and the maxima are the limits."""
    shrink: bool = True
    """Retire workers that a pool does not need for the learner's (or the slowest pool's) speed."""
    every_s: Seconds = 20.0
    """A reading spans the steps of at least so many seconds."""
    readings: Positive = 3
    """So many readings in a row must ask for the same change."""
    margin: Margin = 0.1
    """Smallest gain in speed, as a fraction, that a change is made for."""
    cooldown_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """After a change, when its workers serve or have ended, so long nothing is read."""
    max_change: Positive = 4
    """Most workers that one decision adds to a pool or retires from it."""
    request_nodes: bool = True
    """Where the cluster has no room, ask Ray's autoscaler for nodes; without it, workers are retired from one pool
    before others are added. A local Ray has no autoscaler."""
    rollout: RangeConfig = RangeConfig()
    """Limits of the rollout pool."""
    teacher: RangeConfig = RangeConfig()
    """Limits of the teacher pool."""
    teachers: dict[str, RangeConfig] = Field(default={})
    """Limits of the pools of further teachers, by name."""
    reference: RangeConfig = RangeConfig()
    """Limits of the reference pool."""

    def range_of(self, role: str) -> RangeConfig:
        """The limits of a pool by its role (`teacher-NAME` of further teachers)."""
        if role.startswith("teacher-"):
            return self.teachers.get(role.removeprefix("teacher-"), RangeConfig())
        return {"rollout": self.rollout, "teacher": self.teacher, "reference": self.reference}[role]


@dataclass(frozen=True)
class Limits:
    """How many workers each pool may have, by role."""

    low: Mapping[str, int]
    high: Mapping[str, int]
    max_total: int | None = None


def limits_of(config: BalanceConfig, counts: Mapping[str, int]) -> Limits:
    """The limits of a run that starts with `counts` workers; ValueError naming the field that is wrong."""
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
        return max(config.max_total - sum(low.values()) + low[role], low[role])
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
    """The Ray cluster, and how long anything is waited for."""

    address: str | None = None
    """Address of a Ray cluster (`auto`, `HOST:6379`, `ray://...`); by default RAY_ADDRESS or a local Ray."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local Ray; by default those of the machine."""
    object_store_gib: Gib = 1.0
    """Object store of a local Ray."""
    dashboard: bool = False
    """Start the dashboard of a local Ray, at port 8265."""
    dashboard_host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:_-]{1,253}$")] = "127.0.0.1"
    """Address the dashboard of a local Ray listens at; other machines reach it at any but a loopback address, and
    its pages, though not its jobs API, are shown without the token."""
    learner_strategy: Literal["pack", "strict_pack", "spread"] = "pack"
    """Nodes of the learner's ranks: few, one (or none start), or as many as there are."""
    teacher_strategy: Literal["pack", "spread"] = "pack"
    """Nodes of the workers of each teacher and of the reference: few, or as many as there are."""
    rollout_strategy: Literal["pack", "spread"] = "spread"
    """Nodes of the rollout workers: few, or as many as there are."""
    placement_timeout_s: Seconds = 300.0
    """Wait so long for the cluster to provide resources that it could have; where nodes are started for a run,
    longer than that takes."""
    grows: bool | None = None
    """Whether nodes come when they are wanted: a worker that no node could hold now is waited for then, not
    refused. By default whether the head was started for Ray's autoscaler v2."""
    start_timeout_s: Seconds = 900.0
    """Wait so long for engines and ranks to start."""
    rollout_timeout_s: Seconds = 1800.0
    """Longest wait for the next finished rollout."""
    score_timeout_s: Seconds = 600.0
    """Longest wait for a scoring call."""
    step_timeout_s: Seconds = 1800.0
    """Longest wait for a training step, publish or checkpoint; a frozen rank is found by it."""
    load_timeout_s: Seconds = 600.0
    """Longest wait for an engine to load weights."""
    drain_timeout_s: Seconds = 120.0
    """So long a worker that is scaled away may take to finish what it has; the rest is done by others."""


# -- health config -----------------------------------------------------------------------------------------
# Settings of how faults are found, and how often is tried again.


Backoff = Annotated[float, Field(gt=0, le=3600)]


class HealthConfig(Section):
    """When a worker is doubted, when it is replaced, and when a run gives up."""

    heartbeat_s: Seconds = 5.0
    """Every worker is asked this often whether it lives, and how far its engine is."""
    suspect_after_s: Seconds = 15.0
    """A worker that has not answered for so long is given no new work until it answers again."""
    dead_after_s: Seconds = 60.0
    """A worker that has not answered for so long (frozen, cut off) is ended and replaced; learner ranks too."""
    stall_after_s: Seconds = 300.0
    """An engine that has work, answers, and makes no token for so long is wedged: it is ended and replaced."""
    max_failed_requests: Positive = 5
    """Requests in a row that failed on an engine and then succeeded on another, before it is replaced."""
    max_restarts: NonNegative = 6
    """Restarts of one worker in a row without a request served in between; then it is given up. The run fails when
    a pool has no worker left."""
    no_worker_after_s: Seconds = 1800.0
    """The run fails when a pool has had no worker that could be given work for so long."""
    backoff_s: Backoff = 1.0
    """Wait so long before the first restart of a worker or of the learner; it doubles with each in a row."""
    max_backoff_s: Backoff = 60.0
    """Longest wait before a restart."""
    max_learner_restarts: NonNegative = 3
    """Restarts of the learner in a row without a new step in between; then the run fails."""
    max_skipped_steps: Positive = 3
    """So many steps in a row without a finite gradient stop the run, with a checkpoint."""

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
