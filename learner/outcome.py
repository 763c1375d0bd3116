"""What one optimizer step had of graded outcomes. The advantages themselves are made by `learner.collate`.

Shapes: B responses of this rank's window, G its groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.ranks import Ranks


def outcome_metrics(batches: Sequence[PackedBatch], *, ranks: Ranks) -> dict[str, float]:
    """Return the metrics of graded outcomes, the same on every rank. Every rank must call it.

    `outcome/mean` is the accuracy of the responses, `outcome/advantage_abs_mean` the mean |advantage|, and
    `outcome/constant_groups_frac` the share of groups whose outcomes are all the same: they have advantage 0.
    """
    outcome_B = torch.cat([batch.outcome_B for batch in batches]).double()
    advantage_B = torch.cat([batch.outcome_advantage_B for batch in batches]).double()
    slot_B = torch.cat([batch.slot_B for batch in batches])
    is_constant_G = _is_constant(outcome_B, slot_B)
    own = [outcome_B.sum(), advantage_B.abs().sum(), outcome_B.new_tensor(len(outcome_B))]
    own += [is_constant_G.double().sum(), outcome_B.new_tensor(len(is_constant_G))]
    outcome, advantage, responses, constant, groups = ranks.sum(torch.stack(own)).tolist()
    return {
        "outcome/mean": outcome / max(responses, 1.0),
        "outcome/advantage_abs_mean": advantage / max(responses, 1.0),
        "outcome/constant_groups_frac": constant / max(groups, 1.0),
    }


def _is_constant(outcome_B: Tensor, slot_B: Tensor) -> Tensor:
    slots_G, group_B = slot_B.unique(return_inverse=True)
    empty_G = outcome_B.new_zeros(len(slots_G))
    lowest_G, highest_G = (
        empty_G.scatter_reduce(0, group_B, outcome_B, how, include_self=False) for how in ("amin", "amax")
    )
    return lowest_G == highest_G
