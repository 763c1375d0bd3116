"""The small real things of the learner's tests: a tiny random Qwen3 on disk, scored tables, a configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from learner.collate import PackedBatch
from learner.loss import WindowCounts
from learner.ranks import Ranks
from learner.window import count_window
from settings.run import RunConfig
from transport.batches import SCORED_SCHEMA, check_scored
from transport.stop_tokens import StopMode, StopTokens, stop_labels

VOCAB_SIZE = 64
STOPS = StopTokens(student_ids=(62,), teacher_ids=(63,))
GOLDEN_TOKEN_IDS = [5, 17, 3, 40, 9, 22, 61, 8]
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
LENGTHS = [(3, 5), (8, 20), (2, 9), (30, 40), (5, 1), (1, 1), (1, 7)]
"""Prompt and response tokens of a window's sequences."""


def tiny_qwen3(
    *, tied: bool = True, seed: int = 0, num_rows: int = VOCAB_SIZE, num_layers: int = 2
) -> Qwen3ForCausalLM:
    """A random Qwen3 of few layers, hidden size 64, with weights large enough for uneven probabilities."""
    config = Qwen3Config(
        vocab_size=num_rows,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.08,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def save_student(path: Path, *, tied: bool = True, seed: int = 0) -> str:
    """Write a tiny student with a tokenizer; returns the path as text."""
    tiny_qwen3(tied=tied, seed=seed).save_pretrained(path)
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(path)
    return str(path)


def scored_table(
    lengths: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    first: int = 0,
    stop_mode: StopMode = "raw",
    ends_with: int | None = None,
    version: int = 0,
) -> pa.Table:
    """Random scored rows, one per (prompt length, response length), with uids counted from `first`."""
    rows = []
    for index, (prompt, response) in enumerate(lengths):
        random = np.random.default_rng([seed, first + index])
        response_ids = random.integers(0, 60, response).tolist()
        if ends_with is not None:
            response_ids[-1] = ends_with
        behaviour = -random.gamma(2.0, 1.5, response)
        rows.append(
            {
                "uid": f"{first + index:06d}",
                "slot": first + index,
                "attempt": 0,
                "prompt_id": f"p{first + index}",
                "sample": 0,
                "seed": 0,
                "source": "math",
                "answer": None,
                "prompt_token_ids": random.integers(0, 60, prompt).tolist(),
                "response_token_ids": response_ids,
                "behaviour_log_probs": behaviour.tolist(),
                "weight_versions": [{"version": version, "num_tokens": response}],
                "finish_reason": "stop" if ends_with is not None else "length",
                "teacher_target_ids": stop_labels(response_ids, mode=stop_mode, stops=STOPS).teacher_token_ids,
                "teacher_log_probs": (behaviour + random.normal(0.0, 1.0, response)).clip(max=-1e-3).tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)


def counts_of(batches: Sequence[PackedBatch]) -> WindowCounts:
    """The denominators of a window on one rank."""
    return count_window(batches, ranks=ALONE)


def replace_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """Return the table with other values in one column."""
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, type=field.type))


def run_config(model_path: str, **sections: dict[str, Any]) -> RunConfig:
    """A float32 configuration of a tiny run; `sections` are merged over it."""
    base: dict[str, Any] = {
        "student": {"model_path": model_path},
        "teacher": {"model_path": model_path},
        "data": {"train_path": "unused.jsonl"},
        "learner": {"dtype": "float32", "zero_stage": 2, "learning_rate": 1e-3, "micro_batch_tokens": 64},
        "objective": {"name": "power", "alpha": 1.0, "rescale": "none", "stop_mode": "raw"},
        "importance": {"name": "truncated", "low": 0.0, "high": 2.0},
    }
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    return RunConfig.model_validate(merged)


def test_scored_tables_of_the_scene_satisfy_the_schema() -> None:
    table = scored_table([(3, 5), (1, 1), (4, 2)], ends_with=62, stop_mode="cross_eos")
    assert check_scored(table).num_rows == 3
    assert table.column("teacher_target_ids")[0].as_py()[-1] == 63
