"""The weight that multiplies each token's advantage, fixed before the first backward of a window.

Shapes: T response tokens of a micro-batch, or of this rank's window.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.facts import TEACHER_ENTROPY, Fact, teacher_entropy_fact
from learner.ranks import Ranks
from learner.values import StudentValues, over_all_ranks, split_like
from rewards import TOKEN_WEIGHTS
from settings.objective import TokenWeightsConfig


class TokenWeight:
    """The configured token weight, or none. Parameters must have been validated (`rewards.validate`)."""

    def __init__(self, config: TokenWeightsConfig) -> None:
        self.name = config.name
        self._weight = None if config.name == "none" else partial(TOKEN_WEIGHTS[config.name], **config.parameters)

    @property
    def needs_values(self) -> bool:
        """True: the weights need a pass without gradient over the window."""
        return self.name == "fire_opd"

    @property
    def facts(self) -> list[Fact]:
        """What that pass must find besides log-probs and entropies."""
        return [teacher_entropy_fact()] if self.name == "fire_opd" else []

    def of_window(
        self, batches: Sequence[PackedBatch], values: Sequence[StudentValues], *, ranks: Ranks
    ) -> list[Tensor | None]:
        """Return weight_T of each micro-batch, 0 where nothing is trained; None without a weight.

        Every rank must call it. FiRe-OPD's maxima and mean are those of the whole window.
        """
        if self._weight is None:
            return [None] * len(batches)
        if self.name == "iw_opd":
            return [self._by_place(batch) for batch in batches]
        teacher_T = torch.cat([value.facts[TEACHER_ENTROPY] for value in values])
        student_T = torch.cat([value.entropy_T for value in values])
        mask_T = torch.cat([batch.response_mask_T for batch in batches])
        mask_T &= teacher_T.isfinite() & student_T.isfinite()
        weight_T = over_all_ranks(self._by_entropy, mask_T, teacher_T, student_T, ranks=ranks)
        return [*split_like(weight_T, batches)]

    def _by_place(self, batch: PackedBatch) -> Tensor:
        """IW-OPD's own advantage is teacher minus behaviour log-prob; it counts as 0 where it has no value."""
        advantage_T = batch.teacher_logp_T - batch.behaviour_logp_T
        has_value_T = advantage_T.isfinite() & batch.was_sampled_T
        advantage_T = torch.where(has_value_T, advantage_T, 0.0)
        assert self._weight is not None
        weight_BT = self._weight(batch.unpack(batch.response_mask_T), advantage_BT=batch.unpack(advantage_T))
        return weight_BT[batch.row_T, batch.column_T]

    def _by_entropy(self, mask_T: Tensor, teacher_T: Tensor, student_T: Tensor) -> Tensor:
        assert self._weight is not None
        return self._weight(mask_T, teacher_entropy_BT=teacher_T, student_entropy_BT=student_T)
