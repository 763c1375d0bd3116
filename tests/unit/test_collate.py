"""Packing isolates sequences, pads nothing, keeps the token shift, and does not depend on row order."""

import dataclasses

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.collate import PackedBatch, collate, pack, split_by_tokens
from learner.log_probs import HeadLimits
from learner.student import StudentModel
from tests.unit.test_learner_scene import LENGTHS, STOPS, VOCAB_SIZE, replace_column, scored_table, tiny_qwen3
from transport.stop_tokens import StopMode, StopTokens


def collated(table: pa.Table, *, stop_mode: StopMode = "raw", max_tokens: int = 64) -> list[PackedBatch]:
    return collate([table], stop_mode=stop_mode, stops=STOPS, max_tokens=max_tokens)


def log_probs(student: StudentModel, batch: PackedBatch) -> torch.Tensor:
    return student(batch.input_ids_N, batch.position_ids_N, batch.source_positions_T, batch.target_ids_T)[0]


def test_log_probs_of_a_packed_row_equal_those_of_each_sequence_alone() -> None:
    causal_lm = tiny_qwen3()
    student = StudentModel(causal_lm, HeadLimits(VOCAB_SIZE, chunk_tokens=16))
    table = scored_table(LENGTHS)
    (batch,) = collated(table, max_tokens=1000)
    packed_BT = batch.unpack(log_probs(student, batch))
    for row, values in enumerate(table.to_pylist()):
        prompt, response = values["prompt_token_ids"], values["response_token_ids"]
        ids = torch.tensor(prompt + response)
        logits = causal_lm(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(packed_BT[row, : len(response)], alone, rtol=0, atol=1e-5)
        assert not packed_BT[row, len(response) :].any()


def test_a_sequence_enters_without_its_last_token_and_sources_precede_targets() -> None:
    table = scored_table([(3, 2), (1, 3)])
    (batch,) = collated(table)
    first, second = table.to_pylist()
    inputs = [
        *first["prompt_token_ids"], *first["response_token_ids"][:-1],
        *second["prompt_token_ids"], *second["response_token_ids"][:-1],
    ]  # fmt: skip
    assert batch.input_ids_N.tolist() == inputs
    assert batch.position_ids_N.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.source_positions_T.tolist() == [2, 3, 4, 5, 6]
    assert batch.target_ids_T.tolist() == first["response_token_ids"] + second["response_token_ids"]
    assert batch.row_T.tolist() == [0, 0, 1, 1, 1]
    assert batch.column_T.tolist() == [0, 1, 0, 1, 2]


def test_nothing_is_padded_and_every_response_token_is_a_target_once() -> None:
    batches = collated(scored_table(LENGTHS), max_tokens=32)
    assert sum(len(batch.input_ids_N) for batch in batches) == sum(p + t - 1 for p, t in LENGTHS)
    assert sum(len(batch.target_ids_T) for batch in batches) == sum(t for _, t in LENGTHS)
    assert all(len(batch.input_ids_N) <= 32 or len(batch.response_length_B) == 1 for batch in batches)


@given(
    st.lists(st.integers(1, 100), max_size=60),
    st.integers(1, 120),
)
def test_split_keeps_every_index_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    groups = split_by_tokens(lengths, max_tokens=max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= max_tokens
    half_full = [group for group in groups if sum(lengths[index] for index in group) * 2 <= max_tokens]
    assert len(half_full) <= 1


def test_row_order_and_the_cut_into_tables_do_not_matter() -> None:
    table = scored_table(LENGTHS)
    reversed_rows = [table.slice(row, 1) for row in reversed(range(table.num_rows))]
    whole = collate([table], stop_mode="raw", stops=STOPS, max_tokens=32)
    parts = collate(reversed_rows, stop_mode="raw", stops=STOPS, max_tokens=32)
    for left, right in zip(whole, parts, strict=True):
        for field in dataclasses.fields(PackedBatch):
            exact = {"rtol": 0, "atol": 0, "equal_nan": True, "msg": field.name}
            torch.testing.assert_close(getattr(left, field.name), getattr(right, field.name), **exact)


def test_a_uid_that_occurs_twice_is_refused() -> None:
    table = scored_table([(3, 5)])
    with pytest.raises(ValueError, match="uid 000000 occurs twice"):
        collate([table, table], stop_mode="raw", stops=STOPS, max_tokens=64)


@pytest.mark.parametrize(
    ("stop_mode", "asked", "keeps_last"),
    [("raw", 62, True), ("mask", 62, False), ("cross_eos", 63, True)],
)
def test_stop_mode_decides_what_the_teacher_is_asked_for_and_the_mask_of_the_last_token(
    stop_mode: StopMode, asked: int, keeps_last: bool
) -> None:
    (batch,) = collated(scored_table([(2, 4)], ends_with=62, stop_mode=stop_mode), stop_mode=stop_mode)
    assert batch.target_ids_T[-1] == 62
    assert batch.teacher_target_ids_T[-1] == asked
    assert torch.equal(batch.teacher_target_ids_T[:-1], batch.target_ids_T[:-1])
    assert batch.response_mask_T.tolist() == [True, True, True, keeps_last]
    assert batch.has_stop_B.tolist() == [True]


@pytest.mark.parametrize("stop_mode", ["raw", "mask", "cross_eos"])
def test_a_truncated_response_keeps_every_token(stop_mode: StopMode) -> None:
    (batch,) = collated(scored_table([(2, 4)], stop_mode=stop_mode), stop_mode=stop_mode)
    assert batch.response_mask_T.all()
    assert batch.is_truncated_B.all()
    assert not batch.has_stop_B.any()


def test_rows_scored_under_another_stop_mode_are_refused() -> None:
    table = scored_table([(2, 4)], ends_with=62, stop_mode="raw")
    with pytest.raises(ValueError, match="teacher_target_ids other than those of stop mode cross_eos"):
        collated(table, stop_mode="cross_eos")


def test_rows_of_each_source_are_read_with_the_stop_token_of_its_teacher() -> None:
    stops = StopTokens((62,), (63,), teacher_ids_of_source={"math": (63,), "code": (61,)})
    table = replace_column(scored_table([(2, 2), (2, 2)], ends_with=61), "source", ["math", "code"])
    targets = [
        [*ids[:-1], last] for ids, last in zip(table["response_token_ids"].to_pylist(), (63, 61), strict=True)
    ]
    scored = replace_column(table, "teacher_target_ids", targets)
    (batch,) = collate([scored], stop_mode="cross_eos", stops=stops, max_tokens=64)
    assert batch.target_ids_T[[1, 3]].tolist() == [61, 61]
    assert batch.teacher_target_ids_T[[1, 3]].tolist() == [63, 61]
    for other in (targets[::-1], table["teacher_target_ids"].to_pylist()):
        with pytest.raises(ValueError, match="teacher_target_ids other than those of stop mode cross_eos"):
            collate(
                [replace_column(table, "teacher_target_ids", other)],
                stop_mode="cross_eos",
                stops=stops,
                max_tokens=64,
            )


def test_weight_versions_are_spread_over_tokens() -> None:
    runs = [[{"version": 4, "num_tokens": 1}, {"version": 7, "num_tokens": 3}]]
    (batch,) = collated(replace_column(scored_table([(2, 4)]), "weight_versions", runs))
    assert batch.weight_version_T.tolist() == [4, 7, 7, 7]


def test_the_padding_micro_batch_has_zero_loss_and_zero_gradients() -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE, chunk_tokens=16))
    batch = pack([])
    assert batch.unpack(batch.response_mask_T).shape == (0, 0)
    loss = log_probs(student, batch).sum()
    loss.backward()
    assert loss == 0
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
