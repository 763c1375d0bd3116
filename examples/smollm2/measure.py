"""Puts models of the SmolLM2 example side by side on the held-out prompts: reverse KL to the teacher, and answers.

    python examples/smollm2/measure.py examples/smollm2/models/student runs/smollm2/export

Independent of the training code: plain transformers. The reverse KL is exact over the vocabulary,
sum_v p_S(v) (log p_S(v) - log p_T(v)), averaged over the positions of answers that the student itself samples at
temperature 1; also the share of answers that end at once. Prints one JSON row per model, then the answers.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from prompts import HELDOUT
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TEACHER = Path(__file__).parent / "models" / "teacher"


@dataclass(frozen=True)
class Measured:
    """One model on the held-out prompts."""

    model: str
    reverse_kl: float
    """Nats per token of the model's own answers, stop token included."""
    mean_length: float
    """Tokens per answer, stop token included."""
    empty: float
    """Share of answers that are the stop token alone."""


def measure(path: str, teacher: Any, tokenizer: Any, *, num_samples: int, max_tokens: int, seed: int) -> Any:
    """Return (Measured, a sampled answer by prompt, the first of `num_samples` each)."""
    student = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    kl_sum, lengths, answers = 0.0, [], {}
    for prompt in HELDOUT:
        for sample in range(num_samples):
            sequence_T, start = sample_answer(student, tokenizer, prompt, max_tokens)
            kl_sum += float(reverse_kl(student, teacher, sequence_T, start).sum())
            lengths.append(len(sequence_T) - start)
            if sample == 0:
                answers[prompt] = tokenizer.decode(sequence_T[start:], skip_special_tokens=True).strip()
    empty = sum(length == 1 for length in lengths) / len(lengths)
    return Measured(path, kl_sum / sum(lengths), sum(lengths) / len(lengths), empty), answers


@torch.no_grad()
def sample_answer(model: Any, tokenizer: Any, prompt: str, max_tokens: int) -> tuple[Tensor, int]:
    """Return prompt and sampled answer as token ids [T], and where the answer starts."""
    messages = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    whole = model.generate(**given, max_new_tokens=max_tokens, do_sample=True, temperature=1.0, top_k=0)
    return whole[0], given["input_ids"].shape[1]


@torch.no_grad()
def reverse_kl(student: Any, teacher: Any, sequence_T: Tensor, start: int) -> Tensor:
    """Return KL(student || teacher) [positions] where the answer's tokens were chosen."""
    student_NV, teacher_NV = (
        model(input_ids=sequence_T[None]).logits[0, start - 1 : -1].float().log_softmax(-1)
        for model in (student, teacher)
    )
    return (student_NV.exp() * (student_NV - teacher_NV)).sum(-1)


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--samples", type=int, default=4, help="answers per prompt")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    settings = {"num_samples": given.samples, "max_tokens": given.max_tokens, "seed": given.seed}
    measured = [measure(path, teacher, tokenizer, **settings) for path in given.models]
    for row, _ in measured:
        print(json.dumps(asdict(row)))
    for prompt in HELDOUT:
        print(f"\n{prompt}")
        for row, answers in measured:
            print(f"  {row.model}: {answers[prompt]!r}")


if __name__ == "__main__":
    main()
