"""What a device can do at best, to say which share of it was reached: from data sheets, or measured.

    peaks = peaks_of(torch.device("cuda"), torch.bfloat16)
    peaks.flops, peaks.bandwidth, peaks.source

A device that `commands.plan.devices` does not know, and any dtype but bfloat16, is measured: one large
matrix product, one large copy. A share of a measured peak says less, since the peak itself may be poor.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from commands.plan.data_sheets import device_named

MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 2**26, "cuda": 2**31}
RUNS = 10


@dataclass(frozen=True)
class Peaks:
    """Of one device and dtype."""

    flops: float
    """Floating-point operations per second of dense matrix products."""
    bandwidth: float
    """Bytes per second from and to memory."""
    source: Literal["data sheet", "measured"]


def peaks_of(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The data sheet's where there is one, else measured now."""
    known = device_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known is not None and dtype == torch.bfloat16:
        return Peaks(known.flops, known.bandwidth, "data sheet")
    return Peaks(_product_flops(device, dtype), _copy_bandwidth(device), "measured")


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _product_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: left @ right, device)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(function: Callable[[], object], device: torch.device) -> float:
    function()
    return min(seconds_of(function, device) for _ in range(RUNS))
