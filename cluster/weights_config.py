"""Settings of how published weights travel to the student engines."""

from typing import Literal

from cluster.engine_config import Positive, Section


class WeightsConfig(Section):
    """Weights on their way from the learner to the student engines."""

    transport: Literal["object_store"] = "object_store"
    """How weights travel: object_store, Ray's (engines may join, leave or die at any time)."""
    delta: bool = False
    """Also publish what changed since the version before, exactly: an engine that holds that version fetches only
    this. The learner's first rank keeps a copy of the last published weights in memory."""
    full_every: Positive = 20
    """With `delta`: every so many-th version is published without differences, so that every engine fetches it in
    full."""
