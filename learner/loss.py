"""Log-probs -> reward -> loss: the asynchronous PowerOPD objective on one packed micro-batch.

With the current student's log-prob `logp`, the teacher's, and the behaviour policy's (that of the engine that
sampled), each response token contributes

    loss = -stop_gradient(weight * reward) * logp        reward = f(teacher_logp, logp)
                                                         weight = min(exp(logp - behaviour_logp), 2)

`reward` is PowerOPD's (arXiv 2606.17199, Eq. 4) or another of `rewards.TOKEN_REWARDS`, from the same forward
pass that is differentiated; `weight` corrects staleness and the engine's numerics (`rewards.IMPORTANCE_WEIGHTS`).
The paper itself is synchronous, with weight 1.

Shapes: T response tokens of a micro-batch, S window statistics.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Self

import torch
from torch import Tensor

from cluster.config import ImportanceConfig, ObjectiveConfig
from learner.collate import PackedBatch
from rewards import IMPORTANCE_WEIGHTS, NORMALISERS, TOKEN_REWARDS, FiniteReward, aggregate, drop_non_finite


@dataclass(frozen=True)
class WindowCounts:
    """What one optimizer step trains on, over all ranks and micro-batches."""

    num_tokens: int
    """Response tokens after stop masks, before non-finite ones are dropped: the token mean's denominator."""
    num_sequences: int
    """Responses with at least one such token: the sequence means' denominator."""
    num_micro_batches: int
    """Backward passes of every rank: those of the rank with the most."""


@dataclass(frozen=True, eq=False)
class MicroBatchLoss:
    """The differentiable loss of a micro-batch and, detached, what became of each token."""

    loss: Tensor
    """Scalar with gradient; those of all micro-batches and ranks add up to the window's loss."""
    logp_T: Tensor
    entropy_T: Tensor
    reward_T: Tensor
    """0 where not trained."""
    importance_T: Tensor
    is_trained_T: Tensor
    """The response mask without tokens whose reward, log-prob or weight is not finite."""

    def detached(self) -> Self:
        """Return it without the graph, so that activations are freed before the next micro-batch."""
        return replace(self, loss=self.loss.detach())


class Objective:
    """The configured reward, normaliser, importance weight and aggregation.

    >>> objective = Objective(ObjectiveConfig(name="power", alpha=5.0), ImportanceConfig())
    >>> objective.micro_batch_loss(batch, logp_T, entropy_T, counts=counts).loss.backward()
    """

    def __init__(self, objective: ObjectiveConfig, importance: ImportanceConfig) -> None:
        """Look the names up; parameters must have been validated (`rewards.validate`)."""
        if objective.name not in TOKEN_REWARDS:
            raise ValueError(f"objective.name must be one of {', '.join(TOKEN_REWARDS)}, got {objective.name}")
        self.aggregation = objective.aggregate
        self.normaliser = NORMALISERS[objective.normaliser]
        reward = TOKEN_REWARDS[objective.name]
        self._reward = partial(reward, **objective.parameters)
        self._needs_finite_teacher = reward.needs_finite_teacher(objective.parameters)
        self._takes_step = "step" in reward.extras
        self._schedule: dict[str, int] = {}
        self._importance = partial(IMPORTANCE_WEIGHTS[importance.name], **importance.parameters)
        self.importance_cap = float(importance.parameters["high"]) if importance.name == "truncated" else inf

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell rewards with a schedule where the run stands; the others do not care."""
        if self._takes_step:
            self._schedule = {"step": step, "max_steps": max_steps}

    @property
    def uses_window_statistics(self) -> bool:
        """True: a pass without gradient over the whole window comes before the first backward."""
        return self.normaliser.uses_window_statistics

    def statistics(self, batch: PackedBatch, logp_T: Tensor) -> Tensor:
        """Return the normaliser's statistics_S of this micro-batch, to be merged over the window."""
        raw = self._raw_reward(batch, logp_T)
        return self.normaliser.statistics(raw.reward_BT, raw.keep_BT)

    def micro_batch_loss(
        self,
        batch: PackedBatch,
        logp_T: Tensor,
        entropy_T: Tensor,
        *,
        counts: WindowCounts,
        statistics_S: Tensor | None = None,
    ) -> MicroBatchLoss:
        """Return the loss of one micro-batch; only `logp_T` carries gradient, rewards and weights do not.

        `statistics_S` are those of the whole window, if the objective uses them.
        """
        raw = self._raw_reward(batch, logp_T)
        reward_T, keep_T = raw.reward_BT, raw.keep_BT
        if statistics_S is not None:
            reward_T = self.normaliser.apply(reward_T, keep_T, statistics_S)
        importance_T = self.importance_weight(batch, logp_T)
        kept = drop_non_finite(reward_T, logp_T, keep_T, importance_T)
        reward_T, keep_T = kept.reward_BT, kept.keep_BT
        importance_T = torch.where(keep_T, importance_T, 0.0)
        loss_T = -(importance_T * reward_T) * torch.where(keep_T, logp_T, 0.0)
        loss = aggregate(
            batch.unpack(loss_T),
            batch.unpack(batch.response_mask_T),
            how=self.aggregation,
            num_tokens=counts.num_tokens,
            num_sequences=counts.num_sequences,
        )
        return MicroBatchLoss(loss, logp_T.detach(), entropy_T, reward_T, importance_T, keep_T)

    def importance_weight(self, batch: PackedBatch, logp_T: Tensor) -> Tensor:
        """Return the detached weight_T; 1 for a relabelled stop token, which no policy sampled."""
        was_sampled_T = batch.was_sampled_T
        weight_BT = self._importance(
            batch.unpack(logp_T),
            batch.unpack(batch.behaviour_logp_T),
            batch.unpack(batch.response_mask_T & was_sampled_T),
        )
        return torch.where(was_sampled_T, weight_BT[batch.row_T, batch.column_T], 1.0)

    def _raw_reward(self, batch: PackedBatch, logp_T: Tensor) -> FiniteReward:
        reward_T = self._reward(batch.teacher_logp_T, logp_T.detach(), batch.response_mask_T, **self._schedule)
        others = (batch.teacher_logp_T,) if self._needs_finite_teacher else ()
        return drop_non_finite(reward_T, logp_T, batch.response_mask_T, *others)
