"""Which response tokens a step trains on: special tokens, truncated responses, and a selection over the window.

What leaves a token out here also takes it out of the loss's denominator. A selection looks at the whole window,
all micro-batches of all ranks, so that no split of a window changes it.

Shapes: T response tokens of a micro-batch, or of this rank's window; B responses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learner.collate import PackedBatch, split_like
from learner.facts import REVERSE_KL, Fact, StudentValues, reverse_kl_fact
from learner.ranks import Ranks, over_all_ranks
from rewards import OBJECTIVES, TOKEN_MASKS
from settings.objective import MasksConfig, ObjectiveConfig

LOWEST_LOG_PROB = -1e30
"""Stands for -inf in means and quantiles, which have no value at infinity."""


class TokenMasks:
    """The configured masks. Parameters must have been validated (`rewards.validate`)."""

    def __init__(
        self, masks: MasksConfig, objective: ObjectiveConfig, *, special_token_ids: Sequence[int] = ()
    ) -> None:
        own = OBJECTIVES[objective.name].token_mask
        self.selection = own if own is not None else masks.selection
        self._parameters: dict[str, Any] = objective.parameters if own is not None else masks.parameters
        self._special_token_ids = tuple(dict.fromkeys(special_token_ids))
        self._drop_truncated = masks.drop_truncated
        self._step = 0

    def begin_step(self, step: int) -> None:
        """Tell masks with phases where the run stands."""
        self._step = step

    @property
    def needs_values(self) -> bool:
        """True: the selection needs a pass without gradient over the window."""
        return self.selection in ("entropy_top", "tip", "reopold")

    @property
    def facts(self) -> list[Fact]:
        """What that pass must find besides log-probs and entropies."""
        return [reverse_kl_fact()] if self.selection == "tip" else []

    def of_batch(self, batch: PackedBatch) -> PackedBatch:
        """Return the batch without special tokens (by the label that is trained) and truncated responses."""
        if self._special_token_ids:
            keep_BT = TOKEN_MASKS["special_tokens"](
                batch.unpack(batch.response_mask_T),
                response_ids_BT=batch.unpack(batch.target_ids_T),
                special_token_ids=self._special_token_ids,
            )
            batch = batch.without(keep_BT[batch.row_T, batch.column_T], "special")
        if self._drop_truncated:
            keep_BT = TOKEN_MASKS["truncated"](
                batch.unpack(batch.response_mask_T), is_truncated_B=batch.is_truncated_B
            )
            batch = batch.without(keep_BT[batch.row_T, batch.column_T], "truncated")
        return batch

    def select(
        self, batches: list[PackedBatch], values: Sequence[StudentValues], *, ranks: Ranks
    ) -> list[PackedBatch]:
        """Return the batches with the selection's tokens alone. Every rank must call it.

        A token without a finite input of the selection takes no part in it and is kept: the loss drops and counts
        it as not finite.
        """
        if self.selection == "none":
            return batches
        if self.selection == "fire_opd":
            keep = self._likely_responses(batches, ranks=ranks)
        else:
            keep = split_like(self._select_tokens(batches, values, ranks=ranks), batches)
        return [batch.without(keep_T, "selection") for batch, keep_T in zip(batches, keep, strict=True)]

    def _select_tokens(
        self, batches: Sequence[PackedBatch], values: Sequence[StudentValues], *, ranks: Ranks
    ) -> Tensor:
        mask_T = torch.cat([batch.response_mask_T for batch in batches])
        inputs = {"student_entropy_BT": torch.cat([value.entropy_T for value in values])}
        parameters = dict(self._parameters)
        if self.selection == "tip":
            inputs["reverse_kl_BT"] = torch.cat([value.facts[REVERSE_KL] for value in values])
        if self.selection == "reopold":
            inputs["teacher_logp_BT"] = torch.cat([batch.teacher_logp_T for batch in batches])
            inputs["student_logp_BT"] = torch.cat([value.logp_T for value in values])
            parameters["step"] = self._step
        is_usable_T = mask_T.clone()
        for input_T in inputs.values():
            is_usable_T &= ~input_T.isnan() if self.selection == "reopold" else input_T.isfinite()

        def selected(usable_T: Tensor, *inputs_T: Tensor) -> Tensor:
            named = dict(zip(inputs, inputs_T, strict=True))
            return TOKEN_MASKS[self.selection](usable_T, **named, **parameters)

        return over_all_ranks(selected, is_usable_T, *inputs.values(), ranks=ranks) | ~is_usable_T

    def _likely_responses(self, batches: Sequence[PackedBatch], *, ranks: Ranks) -> list[Tensor]:
        means_B, counted_B = zip(*map(mean_teacher_logp, batches), strict=True)

        def selected(is_counted_B: Tensor, mean_B: Tensor) -> Tensor:
            # A response's mean stands for its tokens, as a row with a single one.
            keep_B1 = TOKEN_MASKS["fire_opd"](
                is_counted_B[:, None], teacher_logp_BT=mean_B[:, None], **self._parameters
            )
            return keep_B1[:, 0]

        keep_B = over_all_ranks(selected, torch.cat(counted_B), torch.cat(means_B), ranks=ranks)
        per_batch = keep_B.split([batch.response_length_B.numel() for batch in batches])
        return [
            keep[batch.row_T] | batch.teacher_logp_T.isnan()
            for keep, batch in zip(per_batch, batches, strict=True)
        ]


def mean_teacher_logp(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return (mean_B, is_counted_B): each response's mean teacher log-prob over its tokens that count.

    A log-prob that is not a number takes no part; -inf makes the mean lower than any finite one.
    """
    known_T = batch.response_mask_T & ~batch.teacher_logp_T.isnan()
    logp_T = torch.where(known_T, batch.teacher_logp_T.double(), 0.0).clamp(min=LOWEST_LOG_PROB)
    num_tokens_B = batch.unpack(known_T).sum(-1)
    return batch.unpack(logp_T).sum(-1) / num_tokens_B.clamp(min=1), num_tokens_B > 0
