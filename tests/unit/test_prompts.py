"""Prompts: what is read, how it is rendered, and in which order it is used."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inputs.problems import Problem, read_problems
from inputs.prompts import PromptSource, evaluation_requests, sampling_seed
from inputs.rendering import Prompt, check_prompt_lengths, render_prompts
from tests.unit.word_tokenizer import word_tokenizer
from transport.batches import PROMPT_SCHEMA

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write lines (objects become JSON) and return the path."""

    def written(*lines: Any) -> str:
        path = tmp_path / "data.jsonl"
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(texts))
        return str(path)

    return written


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", [1, 2, 3 + i], answer=str(i), source="default") for i in range(count)]


def source(count: int = 5, *, seed: int = 0, num_slots: int = 20, num_samples: int = 2) -> PromptSource:
    return PromptSource(prompts(count), seed=seed, num_samples=num_samples, num_slots=num_slots)


def order(of: PromptSource, count: int) -> list[str]:
    return [of.prompt_of(slot)[1].prompt_id for slot in range(count)]


def test_problems_are_read_with_defaults_for_what_is_missing_or_null(write: Callable[..., str]) -> None:
    full = {"id": 7, "problem": "1+1", "answer": 2, "source": "sums", "level": "easy"}
    path = write(full, b"", {"problem": "2+2"}, {"problem": "3+3", "id": None, "answer": None, "source": None})
    assert read_problems(path, "data.train_path") == [
        Problem("7", "1+1", "2", "sums"),
        Problem("3", "2+2", None, "default"),
        Problem("4", "3+3", None, "default"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"problem": "1+1"', "not valid JSON: .*delimiter"),
        (b'{"problem": "caf\xe9"}', "not valid JSON: .*utf-8"),
        (b'{"problem": "1+1", "answer": ' + b"9" * 5000 + b"}", "not valid JSON: .*4300"),
        (["1+1"], "needs an object, not a list"),
        ({"answer": "2"}, "needs a non-empty string under 'problem'"),
        ({"problem": ""}, "needs a non-empty string under 'problem'"),
        ({"problem": 3}, "needs a non-empty string under 'problem'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(write: Callable[..., str], line: Any, message: str) -> None:
    path = write({"problem": "1+1"}, b"", line)
    with pytest.raises(ValueError, match=rf"{path}:3: {message}"):
        read_problems(path, "data.train_path")


def test_a_file_without_problems_is_an_error_of_its_field(write: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation.data_path: .* holds no problems"):
        read_problems(write(b"", b"  "), "evaluation.data_path")
    with pytest.raises(ValueError, match=r"evaluation\.data_path: no such file: "):
        read_problems(str(tmp_path / "missing.jsonl"), "evaluation.data_path")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"evaluation\.data_path: the folder .* holds no file that ends in"):
        read_problems(str(tmp_path / "folder"), "evaluation.data_path")


def test_prompts_are_rendered_by_the_chat_template() -> None:
    tokenizer = word_tokenizer()
    problems = [Problem("a", "one", "1", "x"), Problem("b", "one two", None, "y")]
    plain = render_prompts(problems, tokenizer, system_prompt=None, template_arguments={})
    assert plain == [Prompt("a", [2, 6, 3], "1", "x"), Prompt("b", [2, 6, 7, 3], None, "y")]
    full = render_prompts(problems[:1], tokenizer, system_prompt="be brief", template_arguments={"think": True})
    assert full[0].token_ids == [1, 4, 5, 2, 6, 3, 8]


def test_a_tokenizer_without_a_chat_template_is_an_error() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"student.model_path: .* no chat template"):
        render_prompts([Problem("a", "one", None, "x")], tokenizer, system_prompt=None, template_arguments={})


def test_the_longest_prompt_must_leave_space_for_a_full_response() -> None:
    some = [Prompt("short", [1] * 3, None, "x"), Prompt("long", [1] * 10, None, "x")]
    check_prompt_lengths(some, max_response_tokens=22, context=32, field="data.train_path")
    with pytest.raises(ValueError, match=r"data.train_path: prompt 'long' has 10 tokens.*needs 33.*: 22\)"):
        check_prompt_lengths(some, max_response_tokens=23, context=32, field="data.train_path")
    with pytest.raises(ValueError, match=r"nearest valid rollout.max_response_tokens: 0\)"):
        check_prompt_lengths(some, max_response_tokens=1, context=8, field="data.train_path")


def test_every_prompt_comes_once_per_epoch_in_an_order_of_its_own() -> None:
    of = source(10)
    epochs = [order(of, 40)[start : start + 10] for start in (0, 10, 20, 30)]
    assert all(Counter(epoch) == Counter(f"p{i}" for i in range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [of.prompt_of(slot)[0] for slot in (0, 9, 10, 39)] == [0, 0, 1, 3]


def test_a_slot_that_gives_its_prompt_up_takes_an_unused_position_and_no_other_moves() -> None:
    of, untouched = source(), source(num_slots=40)
    before = order(of, 20)
    assert of.give_up(3) == before[3]
    assert of.give_up(7) == before[7]
    assert of.give_up(3) == untouched.prompt_of(20)[1].prompt_id
    assert of.replacements == {3: 22, 7: 21}
    expected = before.copy()
    expected[3], expected[7] = (untouched.prompt_of(position)[1].prompt_id for position in (22, 21))
    assert order(of, 20) == expected


def test_a_longer_run_that_goes_on_with_old_replacements_still_takes_unused_positions() -> None:
    of = source(num_slots=30)
    of.replacements = {3: 20}
    of.give_up(4)
    assert of.replacements == {3: 20, 4: 30}


def test_requests_are_complete_and_their_uids_unique() -> None:
    of = source(num_samples=3)
    table = of.requests_for(range(20), [0] * 20)
    assert table.schema == PROMPT_SCHEMA
    rows = table.to_pylist()
    assert sampling_seed(0, "0-0-p-0") == 3442790526  # in every release
    assert len({row["uid"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows) == 60
    assert [row["slot"] for row in rows] == [slot for slot in range(20) for _ in range(3)]
    assert [row["sample"] for row in rows] == [0, 1, 2] * 20
    for row in rows:
        epoch, prompt = of.prompt_of(row["slot"])
        assert row["uid"] == f"{row['slot']}-{epoch}-{prompt.prompt_id}-{row['sample']}"
        assert row["prompt_token_ids"] == prompt.token_ids


def test_another_attempt_keeps_uids_and_seeds_until_the_prompt_is_given_up() -> None:
    of = source()
    first, second = (of.requests_for([3], [attempt]).to_pylist() for attempt in (0, 1))
    assert [row | {"attempt": 1} for row in first] == second
    of.give_up(3)
    third = of.requests_for([3], [0]).to_pylist()
    assert not {row["uid"] for row in first} & {row["uid"] for row in third}
    assert not {row["seed"] for row in first} & {row["seed"] for row in third}


def test_an_evaluation_asks_for_every_prompt() -> None:
    rows = evaluation_requests(prompts(3), num_samples=2, seed=5).to_pylist()
    assert [(row["slot"], row["sample"], row["prompt_id"]) for row in rows] == [
        (slot, sample, f"p{slot}") for slot in range(3) for sample in range(2)
    ]
    assert rows == evaluation_requests(prompts(3), num_samples=2, seed=5).to_pylist()
    assert len({row["uid"] for row in rows}) == 6
