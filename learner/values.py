"""What one forward pass says of a micro-batch's tokens, and functions of all tokens of a window.

Shapes: T response tokens of a micro-batch, or of this rank's window; S tokens of all ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.ranks import Ranks


@dataclass(frozen=True, eq=False)
class StudentValues:
    """The student's log-probs of the targets and its entropies, and what else was asked for."""

    logp_T: Tensor
    entropy_T: Tensor
    divergence_T: Tensor | None = None
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """value_T of each fact by name, without gradient."""


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


def split_like(values_T: Tensor, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """Return the part of each micro-batch."""
    return list(values_T.split([batch.target_ids_T.numel() for batch in batches]))


def _gather(values_T: Tensor, ranks: Ranks) -> Tensor:
    if values_T.dtype == torch.bool:
        return ranks.gather(values_T.to(torch.uint8)).bool()
    return ranks.gather(values_T)
