"""Scored tables -> packed micro-batches: the only place where tokens are shifted against log-probs.

The hidden state at a token predicts the next one. A sequence with a prompt of P tokens and a response of T
tokens therefore enters the model as its first P + T - 1 tokens (the last response token is only ever a target),
and the hidden states at P - 1 .. P + T - 2 predict the response.

Shapes: N packed tokens of a micro-batch, T its response tokens, B its sequences, K the teacher's top
tokens, H its hidden size.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner.sequences import ScoredSequence, read_sequences
from rewards import group_advantage
from settings.teachers import ONLY_TEACHER, TeacherShare
from transport.batches import SAMPLED, TeacherSignal
from transport.stop_tokens import StopMode, StopTokens

MASKED_BY = ("stop", "special", "truncated", "selection")
"""What may leave a token out; `PackedBatch.masked_by_T` counts from 1 in it."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One micro-batch: sequences laid end to end in one row, without padding or attention mask.

    Position ids restart at 0 in every sequence; transformers reads that as "do not attend across".
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    source_positions_T: Tensor
    """Index into N of the hidden state that predicts each response token."""
    target_ids_T: Tensor
    """The sampled tokens: no stop mode trains another one."""
    teacher_target_ids_T: Tensor
    """The same to the teacher, which is asked for its own stop token in stop mode `cross_eos`."""
    behaviour_logp_T: Tensor
    teacher_logp_T: Tensor
    """NaN where the teacher sent hidden states, until `learner.divergence` has filled it in."""
    teacher_topk_ids_TK: Tensor
    """K is 0 unless the teacher sent its top k tokens."""
    teacher_topk_logp_TK: Tensor
    teacher_hidden_TH: Tensor
    """H is 0 unless the teacher sent the input of its output head."""
    reference_logp_T: Tensor
    """NaN without a reference model."""
    response_mask_T: Tensor
    """True on response tokens that count; False on a final stop token in stop mode `mask`."""
    masked_by_T: Tensor
    """uint8: 0 on response tokens that count, else what left the token out, counted from 1 in MASKED_BY."""
    weight_version_T: Tensor
    """int64 version of the weights that sampled each token."""
    row_T: Tensor
    """Sequence (index into B) of each response token."""
    column_T: Tensor
    """Place of each response token in its response."""
    response_length_B: Tensor
    is_truncated_B: Tensor
    has_stop_B: Tensor
    slot_B: Tensor
    teacher_B: Tensor
    """Place of the teacher that scored the response among the teachers; 0 where there is one."""
    teacher_weight_B: Tensor
    """Factor of the token losses: the weight of the teacher that scored the response."""
    outcome_B: Tensor
    """Graded outcome of the response; 0 where outcomes are not graded."""
    outcome_advantage_B: Tensor
    """The outcome's advantage within the responses of the slot; 0 where outcomes are not graded."""

    def without(self, keep_T: Tensor, masked_by: str) -> Self:
        """Return the batch in which only those of the counted tokens still count; the others are `masked_by`."""
        dropped_T = self.response_mask_T & ~keep_T
        masked_by_T = self.masked_by_T.masked_fill(dropped_T, MASKED_BY.index(masked_by) + 1)
        return replace(self, response_mask_T=self.response_mask_T & keep_T, masked_by_T=masked_by_T)

    @property
    def relative_position(self) -> Tensor:
        """Place of each of the T response tokens in its response, from 0 (first) to 1 (last)."""
        last_T = (self.response_length_B[self.row_T] - 1).clamp(min=1)
        return self.column_T / last_T

    @property
    def is_stop(self) -> Tensor:
        """True for each of the T response tokens that is a response's final stop token."""
        return self.has_stop_B[self.row_T] & (self.column_T == self.response_length_B[self.row_T] - 1)

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def unpack(self, values_T: Tensor) -> Tensor:
        """Return per-token values as rows, values_BT, with zeros after the end of shorter responses."""
        num_columns = int(self.column_T.max()) + 1 if self.column_T.numel() else 0
        values_BT = values_T.new_zeros(self.response_length_B.numel(), num_columns)
        return values_BT.index_put((self.row_T, self.column_T), values_T)


def collate(
    tables: Sequence[pa.Table],
    *,
    stop_mode: StopMode,
    stops: StopTokens,
    max_tokens: int,
    signal: TeacherSignal = SAMPLED,
    share_of_source: Mapping[str, TeacherShare] | None = None,
    outcome_std: str = "sample",
) -> list[PackedBatch]:
    """Return this rank's share of the window as micro-batches of at most `max_tokens` packed tokens.

    A longer sequence gets a micro-batch of its own. The result depends on the rows alone, not on their order
    or on how they are cut into tables, so that a repeated run is equal bit for bit. `share_of_source` says
    which teacher a source is of (`settings.teachers`); `outcome_std`, what advantages of outcomes are divided by.
    """
    sequences = [
        row for table in tables for row in read_sequences(table, stop_mode=stop_mode, stops=stops, signal=signal)
    ]
    sequences.sort(key=lambda sequence: sequence.uid)
    for left, right in pairwise(sequences):
        if left.uid == right.uid:
            raise ValueError(f"scored batch: uid {left.uid} occurs twice in one step")
    if signal.has_outcome:
        sequences = with_advantages(sequences, std=outcome_std)
    groups = split_by_tokens([sequence.num_inputs for sequence in sequences], max_tokens=max_tokens)
    return [
        pack([sequences[index] for index in group], signal=signal, share_of_source=share_of_source)
        for group in groups
    ]


def with_advantages(sequences: Sequence[ScoredSequence], *, std: str) -> list[ScoredSequence]:
    """Return the sequences, in order, with their outcomes' advantages within the responses of their slot.

    A rank gets whole slots: every response to a slot's prompt is here.
    """
    rows_of_slot: dict[int, list[int]] = defaultdict(list)
    for row, sequence in enumerate(sequences):
        rows_of_slot[sequence.slot].append(row)
    found = list(sequences)
    for rows in rows_of_slot.values():
        outcome_K = torch.tensor([sequences[row].outcome for row in rows])
        for row, advantage in zip(rows, group_advantage(outcome_K[None], std=std)[0].tolist(), strict=True):
            found[row] = replace(found[row], outcome_advantage=advantage)
    return found


def split_by_tokens(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return groups of indices whose lengths sum to at most `max_tokens`; a longer one stands alone.

    First-fit decreasing: at most 11/9 of the fewest possible groups (plus one). Groups are ordered by their
    first index and so are the indices within a group.
    """
    groups: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = (group for group, capacity in enumerate(left) if lengths[index] <= capacity)
        group = next(fitting, None)
        if group is None:
            groups.append([index])
            left.append(max_tokens - lengths[index])
        else:
            groups[group].append(index)
            left[group] -= lengths[index]
    return sorted(sorted(group) for group in groups)


def pack(
    sequences: Sequence[ScoredSequence],
    *,
    signal: TeacherSignal = SAMPLED,
    share_of_source: Mapping[str, TeacherShare] | None = None,
) -> PackedBatch:
    """Lay sequences end to end; `pack([])` is the padding micro-batch.

    The padding micro-batch has one input token and no target. Its loss is 0 with zero gradients for every
    parameter, so a rank that has run out of sequences still takes part in every collective of the backward pass.
    """
    shares = [(share_of_source or {}).get(s.source, ONLY_TEACHER) for s in sequences]
    inputs = [np.concatenate([s.prompt_ids, s.response_ids[:-1]]) for s in sequences]
    starts = np.cumsum([0, *(len(ids) for ids in inputs)])
    lengths = [len(s.response_ids) for s in sequences]
    sources = [
        start + len(s.prompt_ids) - 1 + np.arange(length)
        for s, start, length in zip(sequences, starts, lengths, strict=False)
    ]
    return PackedBatch(
        input_ids_N=_join(inputs or [np.zeros(1)], np.int64),
        position_ids_N=_join([np.arange(len(ids)) for ids in inputs] or [np.zeros(1)], np.int64),
        source_positions_T=_join(sources, np.int64),
        target_ids_T=_join([s.response_ids for s in sequences], np.int64),
        teacher_target_ids_T=_join([s.teacher_target_ids for s in sequences], np.int64),
        behaviour_logp_T=_join([s.behaviour_logp for s in sequences], np.float32),
        teacher_logp_T=_join([s.teacher_logp for s in sequences], np.float32),
        teacher_topk_ids_TK=_stack([s.topk_ids for s in sequences], np.int64, width=signal.k),
        teacher_topk_logp_TK=_stack([s.topk_logp for s in sequences], np.float32, width=signal.k),
        teacher_hidden_TH=_hidden(
            _stack([s.hidden for s in sequences], np.uint8, width=signal.hidden_bytes), signal
        ),
        reference_logp_T=_join([s.reference_logp for s in sequences], np.float32),
        response_mask_T=_join([s.response_mask for s in sequences], np.bool_),
        masked_by_T=_join([~s.response_mask for s in sequences], np.uint8),
        weight_version_T=_join([s.weight_version for s in sequences], np.int64),
        row_T=_join([np.repeat(np.arange(len(lengths)), lengths)], np.int64),
        column_T=_join([np.arange(length) for length in lengths], np.int64),
        response_length_B=torch.tensor(lengths, dtype=torch.int64),
        is_truncated_B=torch.tensor([s.is_truncated for s in sequences], dtype=torch.bool),
        has_stop_B=torch.tensor([s.has_stop for s in sequences], dtype=torch.bool),
        slot_B=torch.tensor([s.slot for s in sequences], dtype=torch.int64),
        teacher_B=torch.tensor([share.index for share in shares], dtype=torch.int64),
        teacher_weight_B=torch.tensor([share.weight for share in shares], dtype=torch.float32),
        outcome_B=torch.tensor([s.outcome for s in sequences], dtype=torch.float32),
        outcome_advantage_B=torch.tensor([s.outcome_advantage for s in sequences], dtype=torch.float32),
    )


def split_like(values_T: Tensor, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """Return the part of each micro-batch."""
    return list(values_T.split([batch.target_ids_T.numel() for batch in batches]))


def _join(parts: Sequence[np.ndarray], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype, casting="unsafe"))


def _stack(parts: Sequence[np.ndarray], dtype: type, *, width: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((0, width), dtype), *parts], dtype=dtype, casting="unsafe"))


def _hidden(bytes_TH: Tensor, signal: TeacherSignal) -> Tensor:
    dtype: torch.dtype = getattr(torch, signal.dtype)
    if bytes_TH.numel() == 0:  # nothing to view as another type
        return torch.zeros(len(bytes_TH), signal.hidden_size, dtype=dtype)
    return bytes_TH.view(dtype)
