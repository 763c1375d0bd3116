"""Which share of what a device can do by its data sheet is assumed to be reached.

The fractions and fixed seconds are ASSUMPTIONS for planning before anything has run: of the right size for
dense models on one node, and wrong by a factor in single cases. Replace them by rates that were measured
(`from_run`, or values under `rates`) as soon as there are any.
"""

from typing import Annotated, Literal

from pydantic import Field

from commands.plan.data_sheets import DEVICES, Device
from commands.plan.timing import Duration
from settings.engine import Fraction, Section

DeviceName = Literal["a100-40gb", "a100-80gb", "l4", "l40s", "h100", "h200", "b200"]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DeviceConfig(Section):
    """The device of every worker, and what is assumed to be reached of it."""

    type: DeviceName = "h100"
    """Kind of device of all roles; an engine has `engine.tensor_parallel_size` of them, a learner rank one."""
    rollout: DeviceName | None = None
    """Another kind for student engines."""
    teacher: DeviceName | None = None
    """Another kind for engines that score."""
    learner: DeviceName | None = None
    """Another kind for the learner."""
    decode_fraction: Fraction = 0.6
    """Share of the memory bandwidth that decoding reaches."""
    prefill_fraction: Fraction = 0.4
    """Share of the arithmetic that prefill and scoring reach."""
    training_fraction: Fraction = 0.35
    """Share of the arithmetic that forward and backward reach."""
    step_overhead_s: Duration = 0.004
    """Seconds of an engine step besides memory and arithmetic: scheduling, launches, sampling."""
    call_overhead_s: Duration = 0.02
    """Seconds of a scoring call besides its tokens."""
    train_overhead_s: Duration = 0.5
    """Seconds of a training step besides arithmetic and optimizer: hand-over, collation, reductions."""
    publish_bytes_per_s: PerSecond = 2e9
    """Bytes of weights per second from the learner into the object store, and from there to an engine's node."""
    load_bytes_per_s: PerSecond = 1e10
    """Bytes of weights per second into a stopped engine."""

    def of(self, role: str) -> Device:
        """The device of a role; that of `teacher` for the reference model."""
        named = {"rollout": self.rollout, "learner": self.learner}.get(role, self.teacher)
        return DEVICES[named or self.type]
