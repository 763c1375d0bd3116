"""What travels between actors: the Arrow schemas of rollouts and scored rollouts, checked at every hop.

One `pa.Table` per slot, one row per response of the slot's group. Column names are written only here.
A missing log-prob is an error at the worker that misses it; null never stands for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from transport.columns import Ragged, flat, flattened, lengths, starts_of

BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class TeacherSignal:
    """What a scored table holds besides the rollout: only what the objective declares travels.

    >>> TeacherSignal()                      # 4 bytes per token: the log-prob of the scored token
    >>> TeacherSignal("topk", k=32)          # 260 bytes: and the teacher's top-32 tokens
    >>> TeacherSignal("full", hidden_size=2560, dtype="bfloat16")  # 5,120 bytes: the input of its output head
    """

    kind: Literal["token", "topk", "full"] = "token"
    k: int = 0
    """Tokens of `topk`."""
    hidden_size: int = 0
    """Width of the hidden states of `full`."""
    dtype: str = "bfloat16"
    """Precision of the hidden states of `full`: the teacher engine's own, so that nothing is rounded."""
    has_outcome: bool = False
    """The final answer of every response is graded: 4 bytes per response."""
    has_reference: bool = False
    """The reference model's log-prob of every token follows the teacher's signal: 4 bytes per token."""

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the hidden state of one token."""
        return self.hidden_size * BYTES_OF_DTYPE[self.dtype]

    @property
    def token_bytes(self) -> int:
        """About the bytes of a token in a scored table: ids, log-probs, and what the signal adds."""
        own = {"token": 4, "topk": 4 + 8 * self.k, "full": self.hidden_bytes}[self.kind]
        return 16 + own + 4 * self.has_reference


SAMPLED = TeacherSignal()
"""The log-prob of the scored token alone."""


TOKENS = pa.list_(pa.int32())
LOG_PROBS = pa.list_(pa.float32())

VERSION_RUNS = pa.list_(pa.struct([("version", pa.int64()), ("num_tokens", pa.int32())]))
"""Weight versions of a response as runs in token order: one run per version it was sampled under."""

PROMPT_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),  # unique: slot-epoch-prompt_id-sample
        pa.field("slot", pa.int64(), nullable=False),  # place in the prompt order; -1 outside training
        pa.field("attempt", pa.int32(), nullable=False),  # 0 first; raised when the slot is issued again
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),  # index inside the group
        pa.field("seed", pa.int64(), nullable=False),  # of this response's sampling
        pa.field("source", pa.string(), nullable=False),  # routes to a teacher
        pa.field("answer", pa.string(), nullable=True),  # null: the data set has none
        pa.field("prompt_token_ids", TOKENS, nullable=False),
    ]
)
"""A request to generate: one row per response wanted."""

ROLLOUT_SCHEMA = pa.schema(
    [
        *PROMPT_SCHEMA,
        pa.field("response_token_ids", TOKENS, nullable=False),
        pa.field("behaviour_log_probs", LOG_PROBS, nullable=False),  # raw, one per response token
        pa.field("weight_versions", VERSION_RUNS, nullable=False),  # run lengths sum to the response's
        pa.field("finish_reason", pa.string(), nullable=False),  # "stop" or "length" (truncated)
    ]
)
"""A finished rollout: prompt, response, and the policy that sampled it."""

TARGETS = pa.field("teacher_target_ids", TOKENS, nullable=False)  # scored: the response's, unless cross_eos
SCORES = pa.field("teacher_log_probs", LOG_PROBS, nullable=False)  # one per response token
TOP_K_FIELDS = [  # k per response token, end to end; the most likely first
    pa.field("teacher_topk_ids", TOKENS, nullable=False),
    pa.field("teacher_topk_log_probs", LOG_PROBS, nullable=False),
]
OUTCOME = pa.field("outcome_scores", pa.float32(), nullable=False)  # of the response: 1 right, 0 wrong
REFERENCE = pa.field("reference_log_probs", LOG_PROBS, nullable=False)  # one per response token
HIDDEN = pa.field("teacher_hidden", pa.binary(), nullable=False)  # [response tokens, hidden size] in C order

SCORED_SCHEMA = pa.schema([*ROLLOUT_SCHEMA, TARGETS, SCORES])
"""A rollout with the teacher's log-prob of every response token."""

TOP_K_SCHEMA = pa.schema([*SCORED_SCHEMA, *TOP_K_FIELDS])
"""The same, with the teacher's top-k tokens at every position."""

HIDDEN_SCHEMA = pa.schema([*ROLLOUT_SCHEMA, TARGETS, HIDDEN])
"""A rollout with the input of the teacher's output head at every position; log-probs follow from it."""

_SCHEMAS = {"token": SCORED_SCHEMA, "topk": TOP_K_SCHEMA, "full": HIDDEN_SCHEMA}

FINISH_REASONS = ("stop", "length")

_PER_RESPONSE_TOKEN = ("behaviour_log_probs", "teacher_target_ids", "teacher_log_probs", "reference_log_probs")


def check_prompts(table: pa.Table) -> pa.Table:
    """Return `table` if it holds generation requests; ValueError naming the column otherwise."""
    _check_schema(table, PROMPT_SCHEMA, "prompt batch")
    _check_not_empty(table, "prompt_token_ids", "prompt batch")
    return table


def check_rollouts(table: pa.Table) -> pa.Table:
    """Return `table` if it is a rollout batch; ValueError naming the column (and row) otherwise."""
    _check_schema(table, ROLLOUT_SCHEMA, "rollout batch")
    _check_rollout_rows(table, "rollout batch")
    return table


def scored_schema(signal: TeacherSignal) -> pa.Schema:
    """Return the schema of tables that are scored with this signal."""
    outcome, reference = [OUTCOME] * signal.has_outcome, [REFERENCE] * signal.has_reference
    return pa.schema([*_SCHEMAS[signal.kind], *outcome, *reference])


def check_scored(table: pa.Table, signal: TeacherSignal = SAMPLED) -> pa.Table:
    """Return `table` if it is scored with this signal; ValueError naming the column (and row) otherwise."""
    _check_schema(table, scored_schema(signal), "scored batch")
    _check_rollout_rows(table, "scored batch")
    wanted = lengths(table.column("response_token_ids")).astype(np.int64)
    if signal.kind == "topk":
        for field in TOP_K_FIELDS:
            _check_lengths(table, field.name, signal.k * wanted, "scored batch")
    if signal.kind == "full":
        _check_lengths(table, HIDDEN.name, signal.hidden_bytes * wanted, "scored batch")
    return table


def save_batch(tables: Sequence[pa.Table], path: Path) -> None:
    """Write scored tables as one Arrow file; no file for none."""
    if tables:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, tables[0].schema) as writer:
            writer.write_table(pa.concat_tables(tables))


def _check_schema(table: pa.Table, schema: pa.Schema, kind: str) -> None:
    if not isinstance(table, pa.Table):
        raise ValueError(f"{kind}: expected a pyarrow.Table, got {type(table).__name__}")
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{kind}: column {missing[0]} is missing (has {', '.join(table.column_names)})")
    extra = [name for name in table.column_names if name not in schema.names]
    if extra:
        raise ValueError(f"{kind}: unknown column {extra[0]}")
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            raise ValueError(f"{kind}: column {field.name} must have type {field.type}, got {column.type}")
        if not field.nullable and column.null_count:
            raise ValueError(f"{kind}: column {field.name} holds {column.null_count} null(s)")
        if pa.types.is_list(field.type) and flattened(column).null_count:
            raise ValueError(f"{kind}: column {field.name} holds a null inside a list")


def _check_not_empty(table: pa.Table, name: str, kind: str) -> np.ndarray:
    """Return the lengths of the lists."""
    found = lengths(table.column(name))
    if not found.all():
        raise ValueError(f"{kind}: column {name} is empty in row {int(found.argmin())}")
    return found


def _check_rollout_rows(table: pa.Table, kind: str) -> None:
    _check_not_empty(table, "prompt_token_ids", kind)
    wanted = _check_not_empty(table, "response_token_ids", kind)
    for name in _PER_RESPONSE_TOKEN:
        if name in table.column_names:
            _check_lengths(table, name, wanted, kind)
    row = _first_difference(_covered(table.column("weight_versions")), wanted)
    if row is not None:
        raise ValueError(f"{kind}: column weight_versions does not cover {wanted[row]} tokens in row {row}")
    for row, reason in enumerate(table.column("finish_reason").to_pylist()):
        if reason not in FINISH_REASONS:
            raise ValueError(
                f"{kind}: column finish_reason is {reason!r} in row {row}, not one of {FINISH_REASONS}"
            )


def _covered(runs: pa.ChunkedArray) -> np.ndarray:
    """Tokens that the runs of each row cover; a run without a number covers none."""
    [_, num_tokens] = flattened(runs).flatten()
    values = flat(num_tokens.fill_null(0) if num_tokens.null_count else num_tokens)
    return Ragged(values, starts_of(lengths(runs))).sums()


def _check_lengths(table: pa.Table, name: str, wanted: np.ndarray, kind: str) -> None:
    found = lengths(table.column(name))
    row = _first_difference(found, wanted)
    if row is not None:
        raise ValueError(f"{kind}: column {name} has length {found[row]} in row {row}, expected {wanted[row]}")


def _first_difference(found: np.ndarray, wanted: np.ndarray) -> int | None:
    is_equal = found == wanted
    return None if is_equal.all() else int(is_equal.argmin())
