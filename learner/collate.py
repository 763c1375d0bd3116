"""Scored tables -> packed micro-batches: the only place where tokens are shifted against log-probs.

The hidden state at a token predicts the next one. A sequence with a prompt of P tokens and a response of T
tokens therefore enters the model as its first P + T - 1 tokens (the last response token is only ever a target),
and the hidden states at P - 1 .. P + T - 2 predict the response.

Shapes: N packed tokens of a micro-batch, T its response tokens, B its sequences, K the teacher's likeliest
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

from cluster.batches import HIDDEN, TOP_K_FIELDS, check_scored
from cluster.stop_tokens import StopMode, StopTokens, stop_labels
from cluster.teacher_signal import SAMPLED, TeacherSignal
from cluster.teachers import ONLY_TEACHER, TeacherShare
from rewards import group_advantage

LARGE = (HIDDEN.name, *(field.name for field in TOP_K_FIELDS))
"""Columns with more than one value per response token."""

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
    """The label under the student: the sampled token, unless the stop mode relabels it."""
    behaviour_logp_T: Tensor
    teacher_logp_T: Tensor
    """NaN where the teacher sent hidden states, until `learner.teacher_head` has filled it in."""
    teacher_topk_ids_TK: Tensor
    """K is 0 unless the teacher sent its likeliest tokens."""
    teacher_topk_logp_TK: Tensor
    teacher_hidden_TH: Tensor
    """H is 0 unless the teacher sent the input of its output head."""
    reference_logp_T: Tensor
    """NaN without a reference model."""
    response_mask_T: Tensor
    """True on response tokens that count; False on a final stop token in stop mode `mask`."""
    masked_by_T: Tensor
    """uint8: 0 on response tokens that count, else what left the token out, counted from 1 in MASKED_BY."""
    was_sampled_T: Tensor
    """False where the stop mode relabelled the token: the behaviour log-prob is another token's."""
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


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """One scored rollout as arrays; every array but `prompt_ids` has one entry per response token."""

    uid: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    target_ids: np.ndarray
    behaviour_logp: np.ndarray
    teacher_logp: np.ndarray
    topk_ids: np.ndarray  # [T, K]
    topk_logp: np.ndarray  # [T, K]
    hidden: np.ndarray  # uint8 [T, bytes of a hidden state]
    reference_logp: np.ndarray
    weight_version: np.ndarray
    response_mask: np.ndarray
    is_truncated: bool
    has_stop: bool
    slot: int
    source: str
    outcome: float
    outcome_advantage: float = 0.0

    @property
    def num_inputs(self) -> int:
        """Tokens that enter the model: all but the last."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


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
    which teacher a source is of (`cluster.teachers`); `outcome_std`, what advantages of outcomes are divided by.
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


def read_sequences(
    table: pa.Table, *, stop_mode: StopMode, stops: StopTokens, signal: TeacherSignal = SAMPLED
) -> list[ScoredSequence]:
    """Return the rows of a scored table, with the stop mode applied to labels and masks."""
    small = check_scored(table, signal).drop_columns([name for name in LARGE if name in table.column_names])
    columns = small.to_pydict()
    return [
        _read_row(
            {name: values[row] for name, values in columns.items()} | _read_large(table, row),
            stop_mode,
            stops,
            signal,
        )
        for row in range(table.num_rows)
    ]


def _read_large(table: pa.Table, row: int) -> dict[str, np.ndarray]:
    """Columns with many values per token, read without a Python object for each."""
    found = {}
    for name in LARGE:
        if name in table.column_names:
            value = table.column(name)[row]
            is_bytes = isinstance(value, pa.BinaryScalar)
            found[name] = np.frombuffer(value.as_buffer(), np.uint8) if is_bytes else value.values.to_numpy()
    return found


def _read_row(row: dict, stop_mode: StopMode, stops: StopTokens, signal: TeacherSignal) -> ScoredSequence:
    response_ids = row["response_token_ids"]
    num_tokens, nothing = len(response_ids), np.zeros(0, np.uint8)
    labels = stop_labels(response_ids, mode=stop_mode, stops=stops, source=row["source"])
    if labels.teacher_token_ids != row["teacher_target_ids"]:
        raise ValueError(
            f"scored batch: row {row['uid']} was scored with teacher_target_ids other than those of stop mode "
            f"{stop_mode}"
        )
    response_mask = np.ones(len(response_ids), dtype=bool)
    response_mask[-1] = labels.keep_last
    runs = row["weight_versions"]
    return ScoredSequence(
        uid=row["uid"],
        prompt_ids=np.array(row["prompt_token_ids"], dtype=np.int64),
        response_ids=np.array(response_ids, dtype=np.int64),
        target_ids=np.array(labels.student_token_ids, dtype=np.int64),
        behaviour_logp=np.array(row["behaviour_log_probs"], dtype=np.float32),
        teacher_logp=np.array(row.get("teacher_log_probs", [np.nan] * num_tokens), dtype=np.float32),
        topk_ids=row.get("teacher_topk_ids", nothing).reshape(num_tokens, signal.k),
        topk_logp=row.get("teacher_topk_log_probs", nothing).reshape(num_tokens, signal.k),
        hidden=row.get("teacher_hidden", nothing).reshape(num_tokens, signal.hidden_bytes),
        reference_logp=np.array(row.get("reference_log_probs", [np.nan] * num_tokens), dtype=np.float32),
        weight_version=np.repeat(
            np.array([run["version"] for run in runs], dtype=np.int64), [run["num_tokens"] for run in runs]
        ),
        response_mask=response_mask,
        is_truncated=row["finish_reason"] == "length",
        has_stop=labels.has_stop,
        slot=row["slot"],
        source=row["source"],
        outcome=row.get("outcome_scores", 0.0),
    )


def split_by_tokens(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return groups of indices whose lengths sum to at most `max_tokens`; a longer one stands alone.

    First-fit decreasing: at most 11/9 of the fewest possible groups (plus one). Groups are ordered by their
    first index and so are the indices within a group.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = (group for group, left in enumerate(room) if lengths[index] <= left)
        group = next(fitting, None)
        if group is None:
            groups.append([index])
            room.append(max_tokens - lengths[index])
        else:
            groups[group].append(index)
            room[group] -= lengths[index]
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
        input_ids_N=_join(inputs or [np.zeros(1)], torch.int64),
        position_ids_N=_join([np.arange(len(ids)) for ids in inputs] or [np.zeros(1)], torch.int64),
        source_positions_T=_join(sources, torch.int64),
        target_ids_T=_join([s.target_ids for s in sequences], torch.int64),
        behaviour_logp_T=_join([s.behaviour_logp for s in sequences], torch.float32),
        teacher_logp_T=_join([s.teacher_logp for s in sequences], torch.float32),
        teacher_topk_ids_TK=_stack([s.topk_ids for s in sequences], np.int64, width=signal.k),
        teacher_topk_logp_TK=_stack([s.topk_logp for s in sequences], np.float32, width=signal.k),
        teacher_hidden_TH=_hidden(
            _stack([s.hidden for s in sequences], np.uint8, width=signal.hidden_bytes), signal
        ),
        reference_logp_T=_join([s.reference_logp for s in sequences], torch.float32),
        response_mask_T=_join([s.response_mask for s in sequences], torch.bool),
        masked_by_T=_join([~s.response_mask for s in sequences], torch.uint8),
        was_sampled_T=_join([s.target_ids == s.response_ids for s in sequences], torch.bool),
        weight_version_T=_join([s.weight_version for s in sequences], torch.int64),
        row_T=_join([np.repeat(np.arange(len(lengths)), lengths)], torch.int64),
        column_T=_join([np.arange(length) for length in lengths], torch.int64),
        response_length_B=torch.tensor(lengths, dtype=torch.int64),
        is_truncated_B=torch.tensor([s.is_truncated for s in sequences], dtype=torch.bool),
        has_stop_B=torch.tensor([s.has_stop for s in sequences], dtype=torch.bool),
        slot_B=torch.tensor([s.slot for s in sequences], dtype=torch.int64),
        teacher_B=torch.tensor([share.index for share in shares], dtype=torch.int64),
        teacher_weight_B=torch.tensor([share.weight for share in shares], dtype=torch.float32),
        outcome_B=torch.tensor([s.outcome for s in sequences], dtype=torch.float32),
        outcome_advantage_B=torch.tensor([s.outcome_advantage for s in sequences], dtype=torch.float32),
    )


def _join(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0), *parts])).to(dtype)


def _stack(parts: Sequence[np.ndarray], dtype: type, *, width: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((0, width), dtype), *parts]).astype(dtype))


def _hidden(bytes_TH: Tensor, signal: TeacherSignal) -> Tensor:
    dtype: torch.dtype = getattr(torch, signal.dtype)
    if bytes_TH.numel() == 0:  # nothing to view as another type
        return torch.zeros(len(bytes_TH), signal.hidden_size, dtype=dtype)
    return bytes_TH.view(dtype)
