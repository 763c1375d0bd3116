"""The Arrow schemas: every wrong column is an error that names it."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from transport.batches import (
    PROMPT_SCHEMA,
    ROLLOUT_SCHEMA,
    SCORED_SCHEMA,
    TeacherSignal,
    check_prompts,
    check_rollouts,
    check_scored,
    scored_schema,
)

pytestmark = pytest.mark.timeout(20)

ROW: dict[str, Any] = {
    "uid": "0-0-p-0",
    "slot": 0,
    "attempt": 0,
    "prompt_id": "p",
    "sample": 0,
    "seed": 4_294_967_295,
    "source": "default",
    "answer": None,
    "prompt_token_ids": [1, 2],
    "response_token_ids": [3, 4, 5],
    "behaviour_log_probs": [-0.5, -1.0, -2.0],
    "weight_versions": [{"version": 1, "num_tokens": 2}, {"version": 2, "num_tokens": 1}],
    "finish_reason": "stop",
    "teacher_target_ids": [3, 4, 6],
    "teacher_log_probs": [-0.25, -1.0, -3.0],
}

Check = Callable[[pa.Table], pa.Table]
CHECKS: list[tuple[Check, pa.Schema]] = [
    (check_prompts, PROMPT_SCHEMA),
    (check_rollouts, ROLLOUT_SCHEMA),
    (check_scored, SCORED_SCHEMA),
]
every_check = pytest.mark.parametrize(("check", "schema"), CHECKS, ids=["prompts", "rollouts", "scored"])
every_column = pytest.mark.parametrize("name", SCORED_SCHEMA.names)


def table(schema: pa.Schema, **changes: Any) -> pa.Table:
    rows = [ROW, ROW | {"uid": "0-0-p-1", "sample": 1, "answer": "4"} | changes]
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)


def check_of(name: str) -> tuple[Check, pa.Schema]:
    """The first check whose table has the column."""
    return next((check, schema) for check, schema in CHECKS if name in schema.names)


def nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


@every_check
def test_a_correct_table_is_returned_itself(check: Check, schema: pa.Schema) -> None:
    correct = table(schema)
    assert check(correct) is correct
    in_chunks = pa.concat_tables([correct, correct])
    assert check(in_chunks) is in_chunks
    assert check(correct.slice(1)).num_rows == 1


@every_check
def test_only_tables_are_taken(check: Check, schema: pa.Schema) -> None:
    with pytest.raises(ValueError, match=r"expected a pyarrow\.Table, got RecordBatch"):
        check(table(schema).to_batches()[0])


@every_column
def test_a_missing_column_is_named(name: str) -> None:
    check, schema = check_of(name)
    with pytest.raises(ValueError, match=f"column {name} is missing"):
        check(table(schema).drop_columns([name]))


@every_check
def test_an_unknown_column_is_named(check: Check, schema: pa.Schema) -> None:
    with pytest.raises(ValueError, match="unknown column reward"):
        check(table(schema).append_column("reward", pa.array([0.0, 0.0])))


@every_column
def test_a_column_of_another_type_is_named(name: str) -> None:
    check, schema = check_of(name)
    index = schema.get_field_index(name)
    wrong = table(schema).set_column(index, name, pa.array([True, False]))
    with pytest.raises(ValueError, match=f"column {name} must have type .*, got bool"):
        check(wrong)


@every_column
def test_a_null_is_an_error_except_for_a_missing_answer(name: str) -> None:
    check, schema = check_of(name)
    with_null = table(nullable(schema), **{name: None})
    if name == "answer":
        assert check(with_null) is with_null
    else:
        with pytest.raises(ValueError, match=rf"column {name} holds 1 null\(s\)"):
            check(with_null)


@pytest.mark.parametrize("name", [name for name in SCORED_SCHEMA.names if isinstance(ROW[name], list)])
def test_a_null_inside_a_list_is_an_error(name: str) -> None:
    check, schema = check_of(name)
    with pytest.raises(ValueError, match=f"column {name} holds a null inside a list"):
        check(table(schema, **{name: [*ROW[name][:-1], None]}))


@pytest.mark.parametrize("name", ["prompt_token_ids", "response_token_ids"])
def test_an_empty_sequence_is_an_error_that_names_its_row(name: str) -> None:
    check, schema = check_of(name)
    with pytest.raises(ValueError, match=f"column {name} is empty in row 1"):
        check(table(schema, **{name: []}))


@pytest.mark.parametrize("name", ["behaviour_log_probs", "teacher_target_ids", "teacher_log_probs"])
@pytest.mark.parametrize("length", [0, 2, 4])
def test_a_column_that_is_not_one_value_per_response_token_is_an_error(name: str, length: int) -> None:
    check, schema = check_of(name)
    with pytest.raises(ValueError, match=f"column {name} has length {length} in row 1, expected 3"):
        check(table(schema, **{name: [1] * length}))


@pytest.mark.parametrize("num_tokens", [[], [2], [2, 2]])
def test_version_runs_must_cover_the_response(num_tokens: list[int]) -> None:
    runs = [{"version": 1, "num_tokens": num} for num in num_tokens]
    with pytest.raises(ValueError, match="column weight_versions does not cover 3 tokens in row 1"):
        check_rollouts(table(ROLLOUT_SCHEMA, weight_versions=runs))


def test_an_aborted_response_is_no_rollout() -> None:
    with pytest.raises(ValueError, match="column finish_reason is 'abort' in row 1"):
        check_rollouts(table(ROLLOUT_SCHEMA, finish_reason="abort"))


MORE = TeacherSignal(has_outcome=True, has_reference=True)
TOP_2, HIDDEN_3 = TeacherSignal("topk", k=2), TeacherSignal("full", hidden_size=3, dtype="bfloat16")
SIGNAL_ROWS = ROW | {
    "teacher_topk_ids": [1, 2, 3, 4, 5, 6],
    "teacher_topk_log_probs": [-0.5, -1.0] * 3,
    "teacher_hidden": bytes(18),
    "outcome_scores": 1.0,
    "reference_log_probs": [-0.5, -1.0, -1.5],
}


def signal_table(signal: TeacherSignal, **changes: Any) -> pa.Table:
    schema = scored_schema(signal)
    return pa.Table.from_pylist([{name: (SIGNAL_ROWS | changes)[name] for name in schema.names}], schema=schema)


@pytest.mark.parametrize("signal", [TOP_2, HIDDEN_3], ids=["topk", "full"])
def test_a_table_of_one_signal_is_correct_for_that_signal_alone(signal: TeacherSignal) -> None:
    correct = signal_table(signal)
    assert check_scored(correct, signal) is correct
    assert check_scored(scored_schema(signal).empty_table(), signal).num_rows == 0
    with pytest.raises(ValueError, match=r"column teacher_log_probs is missing|unknown column teacher_topk_ids"):
        check_scored(correct)
    with pytest.raises(ValueError, match=r"column teacher_\w+ is missing"):
        check_scored(table(SCORED_SCHEMA), signal)


@pytest.mark.parametrize(
    ("signal", "name", "value", "lengths"),
    [
        (TOP_2, "teacher_topk_ids", [1] * 5, "length 5 in row 0, expected 6"),
        (TOP_2, "teacher_topk_log_probs", [-1.0] * 3, "length 3 in row 0, expected 6"),
        (HIDDEN_3, "teacher_hidden", bytes(36), "length 36 in row 0, expected 18"),
    ],
)
def test_a_signal_of_another_size_is_an_error(signal: TeacherSignal, name: str, value: Any, lengths: str) -> None:
    with pytest.raises(ValueError, match=f"column {name} has {lengths}"):
        check_scored(signal_table(signal, **{name: value}), signal)


def test_outcomes_and_reference_travel_only_where_they_are_asked_for() -> None:
    table = signal_table(MORE)
    assert table.column_names[-2:] == ["outcome_scores", "reference_log_probs"]
    assert check_scored(table, MORE) is table
    with pytest.raises(ValueError, match="unknown column outcome_scores"):
        check_scored(table)
    with pytest.raises(ValueError, match="column reference_log_probs is missing"):
        check_scored(table.drop_columns(["reference_log_probs"]), MORE)
    with pytest.raises(ValueError, match="column reference_log_probs has length 2 in row 0, expected 3"):
        check_scored(signal_table(MORE, reference_log_probs=[-1.0, -1.0]), MORE)
