"""The demo task: disjoint problems, a tokenizer that gives its text back, two small models on disk."""

import json
import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.example_scripts import load_script

ARITHMETIC_PATH = Path(__file__).parents[2] / "examples" / "arithmetic"
MODELS_PATH = ARITHMETIC_PATH / "models"


problems = load_script("examples/arithmetic/problems.py")
tokenizer = load_script("examples/arithmetic/tokenizer.py").build_tokenizer()


def test_train_and_heldout_share_no_problem_in_any_order():
    numbers = problems.distinct("train", 5_000, seed=0)
    train = {tuple(sorted(each)) for each in numbers}
    assert len(set(numbers)) == 5_000
    heldout = {tuple(sorted(numbers)) for numbers in problems.distinct("heldout", 200, seed=7)}
    assert not train & heldout


def test_first_heldout_problem_is_the_same_on_every_machine():
    row = json.loads(problems.rows_text("heldout", 1, seed=0))
    assert row == {"id": "heldout-00000", "problem": "83+80+40", "answer": "203", "source": "arithmetic"}


def test_worked_solution_has_a_line_per_addition_and_ends_with_the_answer():
    assert problems.solution_text((12, 30, 5)) == "12+30=42\n42+5=47\n####47"
    assert problems.solution_text((7, 8)) == "7+8=15\n####15"


def test_careless_solution_goes_on_from_its_wrong_sum():
    text = problems.careless_solution_text((12, 30, 5), random.Random(0), slip_rate=1.0)
    first, second, answer = text.split("\n")
    first_sum, second_sum = first.removeprefix("12+30="), second.rpartition("=")[2]
    assert first_sum != "42"
    assert second.startswith(f"{int(first_sum)}+5=")
    assert int(second_sum) != int(first_sum) + 5
    assert answer == f"####{int(second_sum)}"


def test_tokenizer_round_trips_every_solution():
    texts = [problems.solution_text(numbers) for numbers in problems.distinct("train", 500, seed=0)]
    assert [tokenizer.decode(token_ids) for token_ids in tokenizer(texts)["input_ids"]] == texts


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_shipped_model_has_the_tokenizer_of_the_code(role: str):
    shipped = PreTrainedTokenizerFast.from_pretrained(MODELS_PATH / role)
    config = json.loads((MODELS_PATH / role / "config.json").read_text(encoding="utf-8"))
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert config["vocab_size"] == len(tokenizer) == 32
    assert config["eos_token_id"] == shipped.eos_token_id == tokenizer.eos_token_id


def test_card_states_a_strong_teacher_and_a_weak_student():
    card = json.loads((MODELS_PATH / "card.json").read_text(encoding="utf-8"))
    assert card["teacher"]["avg_at_8"] >= 0.93
    assert 0.38 <= card["student"]["avg_at_8"] <= 0.48
