"""What devices can do by their data sheets, and which share of it is assumed to be reached.

The fractions and fixed seconds are ASSUMPTIONS for planning before anything has run: of the right size for
dense models on one node, and wrong by a factor in single cases. Replace them by rates that were measured
(`from_run`, or values under `rates`) as soon as there are any.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from commands.plan.timing import Duration
from settings.engine import Fraction, Section

# -- data sheets -------------------------------------------------------------------------------------------
# What devices can do by their data sheets.


@dataclass(frozen=True)
class Device:
    """Data-sheet numbers of one device: dense bf16 (without sparsity)."""

    flops: float
    bandwidth: float
    """Bytes per second from its memory."""
    memory: float
    """Bytes."""


DEVICES: dict[str, Device] = {
    "a100-40gb": Device(312e12, 1.555e12, 40e9),
    "a100-80gb": Device(312e12, 2.039e12, 80e9),
    "l4": Device(121e12, 0.300e12, 24e9),
    "l40s": Device(362e12, 0.864e12, 48e9),
    "h100": Device(989e12, 3.35e12, 80e9),
    "h200": Device(989e12, 4.8e12, 141e9),
    "b200": Device(2250e12, 8.0e12, 180e9),
}

NAMES = {
    "a100-40gb": ("A100", "40GB"),
    "a100-80gb": ("A100", "80GB"),
    "l4": ("L4",),
    "l40s": ("L40S",),
    "h100": ("H100", "HBM3"),
    "h200": ("H200",),
    "b200": ("B200",),
}
"""Words that the driver's name of a device has: "NVIDIA H100 80GB HBM3" is the SXM module that the table means."""


def device_named(name: str) -> Device | None:
    """The device that a driver calls so; None for one that is not in the table, such as an H100 PCIe."""
    words = set(name.upper().replace("-", " ").split())
    found = [key for key, needed in NAMES.items() if words.issuperset(needed)]
    return DEVICES[found[0]] if found else None


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
