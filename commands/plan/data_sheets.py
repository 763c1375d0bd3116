"""What devices can do by their data sheets; without pydantic, since GPU benchmarks run where only torch is."""

from dataclasses import dataclass


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
