"""DeepSpeed's passes over gradients, a block at a time.

ZeRO converts whole gradients at a time: to float32 where they are added up, to float64 where their norm is taken.
The gradient of an output embedding of 151,936 x 1,024 is 300 MiB in bfloat16, and those two copies of it, 590 and
1,190 MiB, would be the most that a step ever holds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS, CACHED_BLOCK_ELEMENTS = 2**24, 2**18
"""Elements that are converted at once, and on CPUs, where they must not leave the cache: 2 MiB in float64."""
REDUCE_BUCKET_ELEMENTS = 2**25
"""Gradients that ranks reduce together; a larger one is reduced alone, where it is. DeepSpeed's default is 5e8: a
second copy of all gradients of most models."""


def convert_in_blocks(optimizer: Any) -> None:
    """Let a ZeRO optimizer convert gradients block by block; the numbers it computes stay the same."""
    if hasattr(optimizer, "_add_to_grad_partition_buffer"):
        optimizer._add_to_grad_partition_buffer = add_in_blocks
    if hasattr(optimizer, "get_grad_norm_direct"):
        optimizer.get_grad_norm_direct = _NormOfBlocks(optimizer.get_grad_norm_direct)


def add_in_blocks(output: Tensor | None, source: Tensor) -> None:
    """Add `source`, of any float dtype and of as many elements, to a flat `output`, if there is one."""
    if output is None:
        return
    for into, values in zip(_blocks(output.view(-1)), _blocks(source.reshape(-1)), strict=True):
        into += values


class _NormOfBlocks:
    """DeepSpeed's norm of a group's gradients, each of them given as several: their squares add up alike."""

    def __init__(self, norm_of: Any) -> None:
        """`norm_of`: (gradients, their parameters, order of the norm) -> norm over all ranks."""
        self._norm_of = norm_of

    def __call__(self, gradients: Sequence[Tensor], params: Sequence[Any], norm_type: float = 2) -> Tensor:
        """Return the norm; what only fills a partition up has no parameter."""
        real = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
        pairs = [
            (block, param)
            for gradient, param in zip(real, params, strict=False)
            for block in _blocks(gradient.reshape(-1))
        ]
        return self._norm_of([block for block, _ in pairs], [param for _, param in pairs], norm_type)


def _blocks(flat: Tensor) -> tuple[Tensor, ...]:
    elements = CACHED_BLOCK_ELEMENTS if flat.device.type == "cpu" else BLOCK_ELEMENTS
    return torch.split(flat, elements)
