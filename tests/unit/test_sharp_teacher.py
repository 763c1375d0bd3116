"""Under a teacher with near-zero probabilities on student tokens, one token's log-ratio outweighs a batch."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import TOKEN_REWARDS
from tests.unit.example_scripts import load_script
from tests.unit.test_arithmetic_demo import MODELS_PATH, problems

pytestmark = pytest.mark.timeout(120)

sharpen = load_script("examples/arithmetic/sharpen_teacher.py").sharpen

Sequences = list[tuple[list[int], list[int]]]


def careless_answers(num_problems: int) -> Sequences:
    """Prompts, and responses with a slip in every other digit: what a weak student says."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS_PATH / "student")
    rng, found = random.Random(0), []
    for numbers in problems.distinct("train", num_problems, seed=0):
        message = {"role": "user", "content": problems.problem_text(numbers)}
        prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
        answer = problems.careless_solution_text(numbers, rng, slip_rate=0.5)
        found.append((prompt, tokenizer.encode(answer, add_special_tokens=False)))
    return found


def log_probs(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    logits_TV = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def gradient_norm(student: Any, teacher: Any, sequences: Sequences, reward: str) -> float:
    """Norm of the gradient of the token mean of `-reward * logp`."""
    student.zero_grad()
    num_tokens = sum(len(response) for _, response in sequences)
    for prompt, response in sequences:
        logp_T = log_probs(student, prompt, response)
        with torch.no_grad():
            teacher_T = log_probs(teacher, prompt, response)
        mask_T = torch.ones_like(logp_T, dtype=torch.bool)
        (-(TOKEN_REWARDS[reward](teacher_T, logp_T.detach(), mask_T) * logp_T).sum() / num_tokens).backward()
    return float(torch.stack([p.grad.square().sum() for p in student.parameters()]).sum().sqrt())


def test_vanilla_gradients_are_over_a_thousand_times_those_of_power_under_a_sharp_teacher(tmp_path: Path) -> None:
    sharpen(300.0, tmp_path / "sharp")
    student = AutoModelForCausalLM.from_pretrained(MODELS_PATH / "student", dtype=torch.float32)
    sequences = careless_answers(8)
    norms = {}
    for name, path in {"plain": MODELS_PATH / "teacher", "sharp": tmp_path / "sharp"}.items():
        teacher = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        norms[name] = {
            reward: gradient_norm(student, teacher, sequences, reward) for reward in ("log_ratio", "power")
        }
    assert norms["sharp"]["log_ratio"] > 1000 * norms["sharp"]["power"]
    assert norms["plain"]["log_ratio"] < 200 * norms["plain"]["power"]
    assert norms["sharp"]["power"] < 2 * norms["plain"]["power"]
