"""Log-probs -> reward -> loss: the asynchronous PowerOPD objective on one packed micro-batch.

With the current student's log-prob `logp`, the teacher's, and the behaviour policy's (that of the engine that
sampled), each response token contributes

    loss = -stop_gradient(weight * reward) * logp        reward = f(teacher_logp, logp)
                                                         weight = min(exp(logp - behaviour_logp), 2)

Between reward and loss lie, each only where it is configured: a normaliser over the window, returns or a baseline
and a token weight (`learner.advantage`), and a surrogate in place of the policy gradient (`learner.surrogate`).

An objective may have a divergence of the two distributions in its place, or besides it: its value at the token's
position is added to the loss, without a weight, since it depends on the sampled tokens only through the prefix.

`reward` is PowerOPD's (arXiv 2606.17199, Eq. 4) or another of `rewards.TOKEN_REWARDS`, from the same forward
pass that is differentiated; `weight` corrects staleness and the engine's numerics (`rewards.IMPORTANCE_WEIGHTS`).
The paper itself is synchronous, with weight 1.

Graded outcomes, if they are mixed in, add the advantage of the response to the reward of each of its tokens. With
several teachers the loss of a token is multiplied by the weight of the teacher that scored it.

Shapes: T response tokens of a micro-batch, S window statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from learner.advantage import Advantage, TokenWeight
from learner.collate import PackedBatch
from learner.divergence import BatchDivergence, TeacherHead
from learner.facts import BASELINE, BatchFacts, Fact, baseline_fact, student_mass_fact
from learner.masks import TokenMasks
from learner.surrogate import Surrogate
from rewards import (
    DIVERGENCES,
    NORMALISERS,
    OBJECTIVES,
    TOKEN_REWARDS,
    Entry,
    FiniteReward,
    aggregate,
    check_name,
    drop_non_finite,
)
from settings.objective import (
    ImportanceConfig,
    MasksConfig,
    ObjectiveConfig,
    OutcomeConfig,
    SurrogateConfig,
    TokenWeightsConfig,
)
from settings.run import RunConfig

POSITION_EXTRAS = {"sampled_ids_N": "target_ids_T", "sampled_teacher_logp_N": "teacher_logp_T"}
"""Inputs of a divergence with one value per position, and the field of a packed batch that holds them."""


@dataclass(frozen=True)
class WindowCounts:
    """What one optimizer step trains on, over all ranks and micro-batches."""

    num_tokens: int
    """Response tokens after all masks, before non-finite ones are dropped: the token mean's denominator."""
    num_sequences: int
    """Responses with at least one such token: the sequence means' denominator."""
    num_micro_batches: int
    """Backward passes of every rank: those of the rank with the most."""


@dataclass(frozen=True, eq=False)
class FixedValues:
    """What is known of a micro-batch's tokens before the first backward of the window."""

    weight_T: Tensor | None = None
    """Weight of each token's advantage; None is 1."""
    proximal_logp_T: Tensor | None = None
    """The learner's own log-probs at the start of the window, where something needs them."""


@dataclass(frozen=True, eq=False)
class MicroBatchLoss:
    """The differentiable loss of a micro-batch and, detached, what became of each token."""

    loss: Tensor
    """Scalar with gradient; those of all micro-batches and ranks add up to the window's loss."""
    logp_T: Tensor
    entropy_T: Tensor
    reward_T: Tensor
    """After the normaliser; 0 where not trained, and for objectives without a reward."""
    divergence_T: Tensor
    """0 where not trained, and for objectives without a divergence."""
    importance_T: Tensor
    is_trained_T: Tensor
    """The response mask without tokens whose advantage, divergence, log-prob or weight is not finite."""
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """Further value_T by name, for metrics."""

    def detached(self) -> Self:
        """Return it without the graph, so that activations are freed before the next micro-batch."""
        return replace(self, loss=self.loss.detach())


class Objective:
    """The configured reward or divergence or both, with normaliser, importance weight and aggregation.

    >>> objective = Objective.of(config)
    >>> objective.micro_batch_loss(batch, logp_T, entropy_T, counts=counts).loss.backward()
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        importance: ImportanceConfig,
        *,
        outcome: OutcomeConfig | None = None,
        masks: MasksConfig | None = None,
        token_weights: TokenWeightsConfig | None = None,
        surrogate: SurrogateConfig | None = None,
        special_token_ids: Sequence[int] = (),
    ) -> None:
        """Look the names up; parameters must have been validated (`rewards.validate`)."""
        check_name("objective.name", objective.name, OBJECTIVES)
        entry = OBJECTIVES[objective.name]
        parameters = entry.validate(objective.parameters, field="objective")
        form = entry.needs_with(parameters).form
        self.has_reward, self.has_divergence = form != "direct", form != "pg"
        self.name, self.aggregation = objective.name, objective.aggregate
        self.has_baseline = objective.baseline == "closed_form"
        self.normaliser = NORMALISERS[objective.normaliser]
        self.masks = TokenMasks(masks or MasksConfig(), objective, special_token_ids=special_token_ids)
        self.token_weight = TokenWeight(token_weights or TokenWeightsConfig())
        self.surrogate = Surrogate(surrogate or SurrogateConfig(), importance)
        self.importance_cap = self.surrogate.importance_cap
        self._advantage = Advantage(objective, outcome or OutcomeConfig())
        self._reward = TOKEN_REWARDS[objective.name] if self.has_reward else None
        self._divergence = DIVERGENCES[objective.name] if self.has_divergence else None
        self._parameters = parameters
        self._needs_finite_teacher = self._reward is not None and self._reward.needs_finite_teacher(parameters)
        self._schedule: dict[str, int] = {}

    @classmethod
    def of(cls, config: RunConfig, *, special_token_ids: Sequence[int] = ()) -> Self:
        """Return the objective of a run; `special_token_ids` are those of `masks.special_tokens`."""
        return cls(
            config.objective,
            config.importance,
            outcome=config.outcome,
            masks=config.masks,
            token_weights=config.token_weights,
            surrogate=config.surrogate,
            special_token_ids=special_token_ids,
        )

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell objectives with a schedule or with phases where the run stands; the others do not care."""
        self._schedule = {"step": step, "max_steps": max_steps}
        self.masks.begin_step(step)

    @property
    def uses_window_statistics(self) -> bool:
        """True: a pass without gradient over the whole window comes before the first backward."""
        return (
            self.normaliser.uses_window_statistics
            or self.masks.needs_values
            or self.token_weight.needs_values
            or self.surrogate.needs_proximal
        )

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

    def window_facts(self, batch: PackedBatch, teacher_head: TeacherHead | None) -> BatchFacts | None:
        """Return what the pass over the window must find besides log-probs and entropies; None if nothing."""
        return _facts_of(batch, teacher_head, [*self.masks.facts, *self.token_weight.facts])

    def facts(
        self, batch: PackedBatch, teacher_head: TeacherHead | None, *, is_diagnosed: bool = False
    ) -> BatchFacts | None:
        """Return what to find where the logits are trained: the baseline, and metrics; None if nothing.

        The student's mass on the top k tokens costs next to nothing where the teacher sent them. Of whole
        distributions it is found only if the step `is_diagnosed`, as are the variances that a baseline changes.
        """
        facts = []
        if self.has_baseline:
            scheduled = self._scheduled(TOKEN_REWARDS[self.name])
            facts.append(baseline_fact(self.name, self._parameters, scheduled, is_diagnosed=is_diagnosed))
        if batch.teacher_topk_ids_TK.shape[1] > 0 or (teacher_head is not None and is_diagnosed):
            facts.append(student_mass_fact())
        return _facts_of(batch, teacher_head, facts)

    def micro_batch_loss(
        self,
        batch: PackedBatch,
        logp_T: Tensor,
        entropy_T: Tensor,
        divergence_T: Tensor | None = None,
        *,
        counts: WindowCounts,
        statistics_S: Tensor | None = None,
        fixed: FixedValues | None = None,
        facts: Mapping[str, Tensor] | None = None,
    ) -> MicroBatchLoss:
        """Return the loss of one micro-batch; only `logp_T` and `divergence_T` carry gradient.

        `divergence_T` comes with objectives that have one. `statistics_S` are those of the whole window, if the
        objective uses them; so is what is `fixed`. `facts` hold the baseline of objectives that have one.
        """
        fixed, facts = fixed or FixedValues(), facts or {}
        # Reward.
        raw = self._raw_reward(batch, logp_T)
        reward_T, keep_T = raw.reward_BT, raw.keep_BT
        # Normaliser.
        if statistics_S is not None:
            reward_T = self.normaliser.apply(reward_T, keep_T, statistics_S)
        # Returns or baseline, graded outcome, and token weight.
        advantage_T = self._advantage(
            batch, reward_T, keep_T, baseline_T=facts.get(BASELINE), weight_T=fixed.weight_T
        )
        # Importance weight, and what is finite in all of it.
        importance_T = self.surrogate.weight(batch, logp_T, fixed.proximal_logp_T)
        others = [importance_T] if self.has_reward else []
        others += [] if divergence_T is None else [divergence_T]
        kept = drop_non_finite(advantage_T, logp_T, keep_T, *others)
        advantage_T, keep_T = kept.reward_BT, kept.keep_BT
        importance_T = torch.where(keep_T, importance_T, 0.0)
        # Loss: the divergence's value, and the surrogate of the advantage.
        loss_T = torch.zeros_like(advantage_T) if divergence_T is None else divergence_T
        divergence_T = loss_T = torch.where(keep_T, loss_T, 0.0)
        if self.has_reward:
            loss_T = loss_T + self.surrogate.loss(
                batch,
                logp_T,
                advantage_T,
                keep_T,
                importance_T=importance_T,
                proximal_logp_T=fixed.proximal_logp_T,
            )
        return MicroBatchLoss(
            loss=self._aggregate(batch, loss_T, counts),
            logp_T=logp_T.detach(),
            entropy_T=entropy_T,
            reward_T=torch.where(keep_T, reward_T, 0.0),
            divergence_T=divergence_T.detach(),
            importance_T=importance_T,
            is_trained_T=keep_T,
            facts=facts,
        )

    def _aggregate(self, batch: PackedBatch, loss_T: Tensor, counts: WindowCounts) -> Tensor:
        """Return the micro-batch's part of the window's loss; the tokens of a teacher count by its weight."""
        return aggregate(
            batch.unpack(loss_T * batch.teacher_weight_B[batch.row_T]),
            batch.unpack(batch.response_mask_T),
            how=self.aggregation,
            num_tokens=counts.num_tokens,
            num_sequences=counts.num_sequences,
        )

    def _raw_reward(self, batch: PackedBatch, logp_T: Tensor) -> FiniteReward:
        mask_T = batch.response_mask_T
        if self._reward is None:
            return drop_non_finite(torch.zeros_like(logp_T), logp_T.detach(), mask_T)
        has_reference = "reference_logp_BT" in self._reward.extras
        reference = {"reference_logp_BT": batch.reference_logp_T} if has_reference else {}
        keywords = self._parameters | self._scheduled(self._reward) | reference
        reward_T = self._reward(batch.teacher_logp_T, logp_T.detach(), mask_T, **keywords)
        others = (batch.teacher_logp_T, *reference.values()) if self._needs_finite_teacher else ()
        return drop_non_finite(reward_T, logp_T, mask_T, *others)

    def _scheduled(self, entry: Entry) -> dict[str, int]:
        return self._schedule if "step" in entry.extras else {}


def _facts_of(batch: PackedBatch, teacher_head: TeacherHead | None, facts: Sequence[Fact]) -> BatchFacts | None:
    return BatchFacts(facts, batch, teacher_head) if facts else None
