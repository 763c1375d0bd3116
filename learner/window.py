"""One optimizer step's micro-batches, with everything that is fixed before the first backward pass.

    micro-batches -> masks -> [one pass without gradient -> selection, token weights, statistics] -> counts

The pass runs only where something needs it: a normaliser with statistics, a selection or weight by entropy or
divergence, or a proximal policy.

Shapes: T response tokens of a micro-batch, S window statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.facts import StudentValues
from learner.loss import FixedValues, Objective, WindowCounts
from learner.ranks import Ranks
from rewards import window_counts

Evaluate = Callable[[PackedBatch], StudentValues]
"""One forward pass without gradient, with the facts of `Objective.window_facts`."""


@dataclass(frozen=True, eq=False)
class Window:
    """This rank's share of a step; every rank's has as many micro-batches."""

    batches: list[PackedBatch]
    """With the masks applied."""
    fixed: list[FixedValues]
    counts: WindowCounts
    statistics_S: Tensor | None
    """Of the normaliser, over all ranks; None if it has none."""


def prepare_window(
    objective: Objective,
    batches: Sequence[PackedBatch],
    *,
    evaluate: Evaluate,
    padding: PackedBatch,
    ranks: Ranks,
) -> Window:
    """Return the window. Every rank must call it; `padding` fills up ranks with fewer micro-batches."""
    num_micro_batches = max(int(ranks.max(torch.tensor(len(batches)))), 1)
    own = [objective.masks.of_batch(batch) for batch in batches]
    own += [padding] * (num_micro_batches - len(own))
    values: list[StudentValues] = []
    if objective.uses_window_statistics:
        with torch.no_grad():
            values = [evaluate(batch) for batch in own]
    own = objective.masks.select(own, values, ranks=ranks)
    weights = objective.token_weight.of_window(own, values, ranks=ranks)
    proximal = [v.logp_T for v in values] if objective.surrogate.needs_proximal else [None] * len(own)
    statistics_S = None
    if objective.normaliser.uses_window_statistics:
        parts = [objective.statistics(batch, value.logp_T) for batch, value in zip(own, values, strict=True)]
        own_S = objective.normaliser.merge(*parts)
        statistics_S = ranks.sum(own_S) if objective.normaliser.reduction == "sum" else ranks.max(own_S)
    return Window(
        batches=own,
        fixed=[FixedValues(weight_T, logp_T) for weight_T, logp_T in zip(weights, proximal, strict=True)],
        counts=count_window(own, ranks=ranks),
        statistics_S=statistics_S,
    )


def count_window(batches: Sequence[PackedBatch], *, ranks: Ranks) -> WindowCounts:
    """Return the denominators over all ranks, after every mask; each rank has as many micro-batches."""
    own = torch.zeros(2, dtype=torch.int64, device=ranks.device)
    for batch in batches:
        own += window_counts(batch.unpack(batch.response_mask_T))
    num_tokens, num_sequences = ranks.sum(own).tolist()
    return WindowCounts(num_tokens, num_sequences, num_micro_batches=len(batches))
