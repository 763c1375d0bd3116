"""The learner's data-parallel ranks, and how numbers cross between them.

Shapes: T values of one rank, S values of all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """This rank's place. Every rank must make the same calls in the same order; alone, nothing is sent."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and yields weights."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Return the maximum over ranks."""
        return self._reduced(values, distributed.ReduceOp.MAX)

    def gather(self, values_T: Tensor) -> Tensor:
        """Return the values of all ranks, in rank order; T may differ between ranks."""
        if self.world_size == 1:
            return values_T
        lengths = self.gather_equal(torch.tensor([values_T.numel()], device=self.device)).tolist()
        padded_T = values_T.new_zeros(max(lengths))
        padded_T[: values_T.numel()] = values_T
        parts = self.gather_equal(padded_T).chunk(self.world_size) if padded_T.numel() else ()
        return torch.cat([values_T[:0], *(part[:n] for part, n in zip(parts, lengths, strict=False))])

    def gather_equal(self, values_T: Tensor) -> Tensor:
        """Return the values of all ranks, in rank order; T is the same on every rank."""
        if self.world_size == 1:
            return values_T
        gathered = values_T.new_empty(self.world_size * values_T.numel())
        distributed.all_gather_into_tensor(gathered, values_T.to(self.device))
        return gathered

    def barrier(self) -> None:
        """Wait for every rank."""
        self.sum(torch.zeros(1))

    def _reduced(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        reduced = values.to(self.device, copy=True)
        if self.world_size > 1:
            distributed.all_reduce(reduced, op=operation)
        return reduced


def over_all_ranks(function: Callable[..., Tensor], *values_T: Tensor, ranks: Ranks) -> Tensor:
    """Return this rank's part of `function(*values_S)`, which has one result for each token of the whole window.

    The tokens of all ranks are gathered, a few bytes each. Every rank must call it, with as many tensors; those of
    one rank have one T.
    """
    own = values_T[0].numel()
    lengths = ranks.gather_equal(torch.tensor([own], device=ranks.device)).tolist()
    whole_S = function(*(_gather(value_T, ranks) for value_T in values_T))
    start = sum(lengths[: ranks.rank])
    return whole_S[start : start + own]


def _gather(values_T: Tensor, ranks: Ranks) -> Tensor:
    if values_T.dtype == torch.bool:
        return ranks.gather(values_T.to(torch.uint8)).bool()
    return ranks.gather(values_T)
