"""Sample responses as rows: texts of tokens in their place, and the reward of the run's own objective."""

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from learner.sample_rows import MAX_TOKENS, SampleRows, token_texts
from settings.run import RunConfig
from tests.unit.test_learner_scene import STOPS, replace_column, run_config, scored_table
from transport.batches import HIDDEN, SAMPLED, TARGETS, TeacherSignal


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and none for more; id 256 is special."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words that carry their space as Llama's do: its decoder drops the first one."""
    words = ["<unk>", "\u2581the", "\u2581cat", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def rows_of(
    table: pa.Table, signal: TeacherSignal = SAMPLED, *, step: int = 0, **settings: Any
) -> list[dict[str, Any]]:
    """Rows of a table, as a run with these settings describes them."""
    config: RunConfig = run_config("student", **settings)
    return SampleRows(config, byte_tokenizer(), stops=STOPS, signal=signal)(table, step)


def test_texts_of_tokens_join_to_the_text_and_a_split_character_stands_at_its_last_token() -> None:
    tokenizer = byte_tokenizer()
    text = "a \u00e9\u20ac\U0001f600 b\n"
    ids = [*tokenizer.encode(text), 256]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == f"{text}<end>"
    assert texts[:4] == ["a", " ", "", "\u00e9"]
    assert texts[4:7] == ["", "", "\u20ac"]


def test_bytes_that_are_no_character_do_not_swallow_what_follows() -> None:
    tokenizer = byte_tokenizer()
    half = tokenizer.encode("\u20ac")[:2]
    texts = token_texts(tokenizer, [*half, *tokenizer.encode("abc")])
    assert len(texts) == 5
    assert "".join(texts).endswith("abc")


def test_a_word_keeps_its_space() -> None:
    assert token_texts(sentence_tokenizer(), [1, 2, 3, 1]) == ["the", " cat", "s", " the"]


def test_values_are_the_rewards_of_the_objective() -> None:
    table = scored_table([(2, 3), (3, 5)])
    rows = rows_of(table, objective={"name": "power", "alpha": 2.0, "stop_mode": "raw"})
    assert [row["problem_id"] for row in rows] == ["p0", "p1"]
    for row, found in zip(table.to_pylist(), rows, strict=True):
        pairs = zip(row["teacher_log_probs"], row["behaviour_log_probs"], strict=True)
        assert found["values"] == pytest.approx([math.exp(2 * t) - math.exp(2 * s) for t, s in pairs], abs=1e-5)
        assert found["student_logp"] == pytest.approx(row["behaviour_log_probs"], abs=1e-5)
        assert found["value"] == "reward"
        assert found["num_tokens"] == len(found["tokens"]) == len(row["response_token_ids"])
    json.dumps(rows, allow_nan=False)


def test_a_divergence_shows_the_log_ratio_and_says_so() -> None:
    table = scored_table([(2, 3)])
    [row] = rows_of(table, objective={"name": "reverse_kl", "stop_mode": "raw"}, importance={"name": "none"})
    expected = [t - s for t, s in zip(row["teacher_logp"], row["student_logp"], strict=True)]
    assert row["value"] == "log-ratio"
    assert row["values"] == pytest.approx(expected, abs=1e-4)


def test_a_teacher_log_prob_that_is_not_finite_is_null_and_its_bounded_reward_is_not() -> None:
    table = replace_column(scored_table([(2, 3)]), "teacher_log_probs", [[-1.0, -math.inf, -1.0]])
    [row] = rows_of(table, objective={"name": "power", "alpha": 1.0, "stop_mode": "raw"})
    assert row["teacher_logp"][1] is None
    assert row["values"][1] == pytest.approx(-math.exp(row["student_logp"][1]), abs=1e-4)


def test_hidden_states_tell_no_log_probs_and_the_response_is_shown_without() -> None:
    signal = TeacherSignal("full", hidden_size=2, dtype="float32")
    table = scored_table([(2, 3)]).drop_columns(["teacher_log_probs"])
    table = table.append_column(HIDDEN, pa.array([bytes(3 * signal.hidden_bytes)], HIDDEN.type))
    assert TARGETS.name in table.column_names
    [row] = rows_of(
        table, signal, objective={"name": "reverse_kl", "stop_mode": "raw"}, importance={"name": "none"}
    )
    assert (row["value"], row["values"], row["teacher_logp"]) == (None, None, None)
    assert len(row["tokens"]) == 3


def test_a_stop_token_that_is_masked_is_said_not_to_be_trained() -> None:
    stop = STOPS.ids[0]
    table = scored_table([(2, 3)], stop_mode="mask", ends_with=stop)
    [row] = rows_of(table, objective={"name": "power", "stop_mode": "mask"})
    assert row["is_trained"] == [True, True, False]
    assert row["finish_reason"] == "stop"


def test_of_a_long_response_the_beginning_is_kept() -> None:
    [row] = rows_of(scored_table([(2, MAX_TOKENS + 7)]), objective={"name": "power", "stop_mode": "raw"})
    assert row["num_tokens"] == MAX_TOKENS + 7
    assert {len(row[key]) for key in ("tokens", "values", "student_logp", "teacher_logp", "is_trained")} == {
        MAX_TOKENS
    }
