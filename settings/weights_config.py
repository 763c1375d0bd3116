"""Settings of how published weights travel to the student engines."""

from typing import Literal

from settings.engine import Positive, Seconds, Section


class WeightsConfig(Section):
    """Weights on their way from the learner to the student engines."""

    transport: Literal["object_store", "nccl", "gloo"] = "object_store"
    """How weights travel: object_store, Ray's (engines may join, leave or die at any time); nccl, a broadcast from
    the learner's first GPU to a GPU of each node with student engines; gloo, the same over TCP between hosts.
    Where a broadcast fails, and for engines that it does not reach, the object store serves."""
    broadcast_timeout_s: Seconds = 60.0
    """With `nccl` or `gloo`: limit of forming the group, and of one broadcast. The learner waits so long for an
    engine that is missing, before the object store serves."""
    delta: bool = False
    """Also publish what changed since the version before, exactly: an engine that holds that version fetches only
    this. The learner's first rank keeps a copy of the last published weights in memory."""
    full_every: Positive = 20
    """With `delta`: every so many-th version is published without differences, so that every engine fetches it in
    full."""

    @property
    def is_broadcast(self) -> bool:
        """Whether a group of the learner and the engines is formed."""
        return self.transport != "object_store"
