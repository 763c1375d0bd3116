"""Scored tables -> one record of arrays per response, with the stop mode applied to labels and masks."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from transport.batches import HIDDEN, REFERENCE, SAMPLED, TARGETS, TOP_K_FIELDS, TeacherSignal, check_scored
from transport.columns import Ragged, flat, flattened, read_lists
from transport.stop_tokens import StopMode, StopTokens, stop_labels


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """One scored rollout as arrays; every array but `prompt_ids` has one entry per response token."""

    uid: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    teacher_target_ids: np.ndarray
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


def read_sequences(
    table: pa.Table, *, stop_mode: StopMode, stops: StopTokens, signal: TeacherSignal = SAMPLED
) -> list[ScoredSequence]:
    """Return the rows of a scored table, with the stop mode applied to labels and masks."""
    check_scored(table, signal)
    prompts, responses = (read_lists(table.column(name)) for name in ("prompt_token_ids", "response_token_ids"))
    labels = [
        stop_labels([token_id], mode=stop_mode, stops=stops, source=source)  # nothing but the last token matters
        for token_id, source in zip(_last(responses), table.column("source").to_pylist(), strict=True)
    ]
    teacher_last = [each.teacher_token_ids[0] for each in labels]
    _check_targets(table, responses, teacher_last, stop_mode)
    response_ids = Ragged(responses.values.astype(np.int64), responses.starts)
    mask = np.ones(len(responses.values), bool)
    mask[responses.starts[1:] - 1] = [each.keep_last for each in labels]
    num_rows, num_tokens = table.num_rows, responses.lengths.tolist()
    outcomes = table.column("outcome_scores").to_pylist() if signal.has_outcome else [0.0] * num_rows
    columns = {
        "uid": table.column("uid").to_pylist(),
        "prompt_ids": Ragged(prompts.values.astype(np.int64), prompts.starts).rows(),
        "response_ids": response_ids.rows(),
        "teacher_target_ids": _with_last(response_ids, teacher_last).rows(),
        "behaviour_logp": _per_token(table, "behaviour_log_probs", responses),
        "teacher_logp": _per_token(table, "teacher_log_probs", responses),
        "topk_ids": _many_per_token(table, TOP_K_FIELDS[0].name, num_tokens, width=signal.k),
        "topk_logp": _many_per_token(table, TOP_K_FIELDS[1].name, num_tokens, width=signal.k),
        "hidden": _many_per_token(table, HIDDEN.name, num_tokens, width=signal.hidden_bytes),
        "reference_logp": _per_token(table, REFERENCE.name, responses),
        "weight_version": Ragged(_versions(table.column("weight_versions")), responses.starts).rows(),
        "response_mask": Ragged(mask, responses.starts).rows(),
        "is_truncated": [reason == "length" for reason in table.column("finish_reason").to_pylist()],
        "has_stop": [each.has_stop for each in labels],
        "slot": table.column("slot").to_pylist(),
        "source": table.column("source").to_pylist(),
        "outcome": outcomes,
    }
    rows = zip(*columns.values(), strict=True)
    return [ScoredSequence(**dict(zip(columns, row, strict=True))) for row in rows]


def _last(rows: Ragged) -> list[int]:
    return rows.values[rows.starts[1:] - 1].tolist()


def _with_last(rows: Ragged, last: list[int]) -> Ragged:
    values = rows.values.copy()
    values[rows.starts[1:] - 1] = last
    return Ragged(values, rows.starts)


def _check_targets(table: pa.Table, responses: Ragged, last: list[int], stop_mode: StopMode) -> None:
    expected, found = _with_last(responses, last), read_lists(table.column(TARGETS.name))
    for place in np.flatnonzero(expected.values != found.values)[:1]:
        uid = table.column("uid")[int(np.searchsorted(responses.starts, place, side="right")) - 1]
        raise ValueError(
            f"scored batch: row {uid} was scored with teacher_target_ids other than those of stop mode {stop_mode}"
        )


def _per_token(table: pa.Table, name: str, responses: Ragged) -> list[np.ndarray]:
    """float32 of each row's tokens; NaN without the column."""
    if name not in table.column_names:
        return Ragged(np.full(len(responses.values), np.nan, np.float32), responses.starts).rows()
    return Ragged(read_lists(table.column(name)).values.copy(), responses.starts).rows()


def _many_per_token(table: pa.Table, name: str, num_tokens: list[int], *, width: int) -> list[np.ndarray]:
    """[tokens, width] of each row, of lists or bytes, without a copy; of width 0 without the column."""
    if name not in table.column_names:
        return [np.zeros((length, 0), np.uint8) for length in num_tokens]
    column = table.column(name)
    if pa.types.is_binary(column.type):
        rows = [np.frombuffer(value.as_buffer(), np.uint8) for value in column]
    else:
        rows = read_lists(column).rows()
    return [row.reshape(length, width) for row, length in zip(rows, num_tokens, strict=True)]


def _versions(runs: pa.ChunkedArray) -> np.ndarray:
    """int64 weight version of every token of a table."""
    versions, num_tokens = map(flat, flattened(runs).flatten())
    return np.repeat(versions, num_tokens)
