"""Reward -> advantage: what follows is credited too, or what was expected is subtracted, and tokens are weighed.

    credit    = reward + discount * next reward + ...        or        reward - baseline
    advantage = weight * (opd_coef * credit + rl_coef * the graded response's advantage in its group)

The token weight is fixed before the first backward of a window.

Shapes: T response tokens of a micro-batch, or of this rank's window.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from learner.collate import PackedBatch, split_like
from learner.facts import TEACHER_ENTROPY, Fact, StudentValues, teacher_entropy_fact
from learner.ranks import Ranks, over_all_ranks
from rewards import TOKEN_WEIGHTS, mix_outcome, return_to_go
from settings.objective import ObjectiveConfig, OutcomeConfig, TokenWeightsConfig


class Advantage:
    """The stages between the (normalised) reward and the surrogate; every result is detached."""

    def __init__(self, objective: ObjectiveConfig, outcome: OutcomeConfig) -> None:
        self.discount = objective.discount
        self.outcome = outcome

    def __call__(
        self,
        batch: PackedBatch,
        reward_T: Tensor,
        keep_T: Tensor,
        *,
        baseline_T: Tensor | None = None,
        weight_T: Tensor | None = None,
    ) -> Tensor:
        """Return advantage_T. Tokens outside `keep_T` have no reward, but keep their place in the response."""
        advantage_T = reward_T
        if self.discount > 0.0:
            return_BT = return_to_go(batch.unpack(reward_T), batch.unpack(keep_T), discount=self.discount)
            advantage_T = return_BT[batch.row_T, batch.column_T]
        if baseline_T is not None:
            advantage_T = advantage_T - baseline_T
        if self.outcome.rl_coef > 0.0:
            coefficients = {"rl_coef": self.outcome.rl_coef, "opd_coef": self.outcome.opd_coef}
            graded_T = batch.outcome_advantage_B[batch.row_T]
            advantage_T = mix_outcome(graded_T, advantage_T[:, None], keep_T[:, None], **coefficients)[:, 0]
        if weight_T is not None:
            advantage_T = advantage_T * weight_T
        return advantage_T


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
        advantage_T = torch.where(advantage_T.isfinite(), advantage_T, 0.0)
        assert self._weight is not None
        weight_BT = self._weight(batch.unpack(batch.response_mask_T), advantage_BT=batch.unpack(advantage_T))
        return weight_BT[batch.row_T, batch.column_T]

    def _by_entropy(self, mask_T: Tensor, teacher_T: Tensor, student_T: Tensor) -> Tensor:
        assert self._weight is not None
        return self._weight(mask_T, teacher_entropy_BT=teacher_T, student_entropy_BT=student_T)
