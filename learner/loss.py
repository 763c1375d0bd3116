"""Log-probs -> reward -> loss: the asynchronous PowerOPD objective on one packed micro-batch.

With the current student's log-prob `logp`, the teacher's, and the behaviour policy's (that of the engine that
sampled), each response token contributes

    loss = -stop_gradient(weight * reward) * logp        reward = f(teacher_logp, logp)
                                                         weight = min(exp(logp - behaviour_logp), 2)

An objective may have a divergence of the two distributions in its place, or besides it: its value at the token's
position is added to the loss, without a weight, since it depends on the sampled tokens only through the prefix.

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
from learner.divergence import BatchDivergence
from learner.teacher_head import TeacherHead
from rewards import (
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    NORMALISERS,
    OBJECTIVES,
    TOKEN_REWARDS,
    Entry,
    FiniteReward,
    aggregate,
    check_name,
    drop_non_finite,
)

POSITION_EXTRAS = {"sampled_ids_N": "target_ids_T", "sampled_teacher_logp_N": "teacher_logp_T"}
"""Inputs of a divergence with one value per position, and the field of a packed batch that holds them."""


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
    """0 where not trained, and for objectives without a reward."""
    divergence_T: Tensor
    """0 where not trained, and for objectives without a divergence."""
    importance_T: Tensor
    is_trained_T: Tensor
    """The response mask without tokens whose reward, divergence, log-prob or weight is not finite."""

    def detached(self) -> Self:
        """Return it without the graph, so that activations are freed before the next micro-batch."""
        return replace(self, loss=self.loss.detach())


class Objective:
    """The configured reward or divergence or both, with normaliser, importance weight and aggregation.

    >>> objective = Objective(ObjectiveConfig(name="power", alpha=5.0), ImportanceConfig())
    >>> objective.micro_batch_loss(batch, logp_T, entropy_T, counts=counts).loss.backward()
    """

    def __init__(self, objective: ObjectiveConfig, importance: ImportanceConfig) -> None:
        """Look the names up; parameters must have been validated (`rewards.validate`)."""
        check_name("objective.name", objective.name, OBJECTIVES)
        entry = OBJECTIVES[objective.name]
        parameters = entry.validate(objective.parameters, field="objective")
        form = entry.needs_with(parameters).form
        self.has_reward, self.has_divergence = form != "direct", form != "pg"
        self.aggregation = objective.aggregate
        self.normaliser = NORMALISERS[objective.normaliser]
        self._reward = TOKEN_REWARDS[objective.name] if self.has_reward else None
        self._divergence = DIVERGENCES[objective.name] if self.has_divergence else None
        self._parameters = parameters
        self._needs_finite_teacher = self._reward is not None and self._reward.needs_finite_teacher(parameters)
        self._schedule: dict[str, int] = {}
        self._importance = partial(IMPORTANCE_WEIGHTS[importance.name], **importance.parameters)
        self.importance_cap = float(importance.parameters["high"]) if importance.name == "truncated" else inf

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell objectives with a schedule where the run stands; the others do not care."""
        self._schedule = {"step": step, "max_steps": max_steps}

    @property
    def uses_window_statistics(self) -> bool:
        """True: a pass without gradient over the whole window comes before the first backward."""
        return self.normaliser.uses_window_statistics

    def statistics(self, batch: PackedBatch, logp_T: Tensor) -> Tensor:
        """Return the normaliser's statistics_S of this micro-batch, to be merged over the window."""
        raw = self._raw_reward(batch, logp_T)
        return self.normaliser.statistics(raw.reward_BT, raw.keep_BT)

    def divergence(self, batch: PackedBatch, teacher_head: TeacherHead | None) -> BatchDivergence | None:
        """Return the divergence of this micro-batch, to be evaluated where the logits are; None without one."""
        if self._divergence is None:
            return None
        names = [name for name in self._divergence.extras if name in POSITION_EXTRAS]
        per_position = {name: getattr(batch, POSITION_EXTRAS[name]) for name in names}
        function = partial(self._divergence, **self._parameters, **self._scheduled(self._divergence))
        return BatchDivergence(function, batch, teacher_head=teacher_head, per_position=per_position)

    def micro_batch_loss(
        self,
        batch: PackedBatch,
        logp_T: Tensor,
        entropy_T: Tensor,
        divergence_T: Tensor | None = None,
        *,
        counts: WindowCounts,
        statistics_S: Tensor | None = None,
    ) -> MicroBatchLoss:
        """Return the loss of one micro-batch; only `logp_T` and `divergence_T` carry gradient.

        `divergence_T` comes with objectives that have one. `statistics_S` are those of the whole window, if the
        objective uses them.
        """
        raw = self._raw_reward(batch, logp_T)
        reward_T, keep_T = raw.reward_BT, raw.keep_BT
        if statistics_S is not None:
            reward_T = self.normaliser.apply(reward_T, keep_T, statistics_S)
        importance_T = self.importance_weight(batch, logp_T)
        others = [importance_T] if self.has_reward else []
        others += [] if divergence_T is None else [divergence_T]
        kept = drop_non_finite(reward_T, logp_T, keep_T, *others)
        reward_T, keep_T = kept.reward_BT, kept.keep_BT
        importance_T = torch.where(keep_T, importance_T, 0.0)
        if divergence_T is None:
            divergence_T = torch.zeros_like(reward_T)
        divergence_T = torch.where(keep_T, divergence_T, 0.0)
        loss_T = divergence_T
        if self.has_reward:
            loss_T = loss_T - (importance_T * reward_T) * torch.where(keep_T, logp_T, 0.0)
        loss = aggregate(
            batch.unpack(loss_T),
            batch.unpack(batch.response_mask_T),
            how=self.aggregation,
            num_tokens=counts.num_tokens,
            num_sequences=counts.num_sequences,
        )
        return MicroBatchLoss(
            loss, logp_T.detach(), entropy_T, reward_T, divergence_T.detach(), importance_T, keep_T
        )

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
        mask_T = batch.response_mask_T
        if self._reward is None:
            return drop_non_finite(torch.zeros_like(logp_T), logp_T.detach(), mask_T)
        keywords = self._parameters | self._scheduled(self._reward)
        reward_T = self._reward(batch.teacher_logp_T, logp_T.detach(), mask_T, **keywords)
        others = (batch.teacher_logp_T,) if self._needs_finite_teacher else ()
        return drop_non_finite(reward_T, logp_T, mask_T, *others)

    def _scheduled(self, entry: Entry) -> dict[str, int]:
        return self._schedule if "step" in entry.extras else {}
