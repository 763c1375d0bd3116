"""Trains the demo's teacher and its weak student, two Qwen3 models of 0.34 M parameters.

    python examples/arithmetic/build_models.py --force

The teacher learns worked solutions from scratch. The student is the teacher's own early checkpoint, trained a
little longer on careless solutions, in which a sum often has a wrong digit: it knows the notation and has learnt
to slip. Both are saved as bfloat16 Hugging Face folders, then loaded again and measured; `card.json` keeps the
measured accuracies. Nothing is done where the models exist, unless `--force` is given.
"""

import argparse
import copy
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from problems import NUM_HELDOUT, Numbers, careless_solution_text, distinct, problem_text, solution_text, stream
from tokenizer import MARKERS, PAD, STOP, build_tokenizer
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

MODELS_PATH = Path(__file__).parent / "models"
TEACHER_STEPS = 1200
CHECKPOINT_STEP = 800
"""The student starts from here: late enough to add well, early enough to be a third of the schedule behind."""
STUDENT_STEPS = 150
SLIP_RATE = 0.27
BATCH_SIZE = 64
SAMPLES_PER_PROBLEM = 8
MAX_RESPONSE_TOKENS = 32
"""The longest worked solution has 26 tokens."""
LIMITS = {"teacher": (0.93, 1.0), "student": (0.38, 0.48)}
"""Sampled accuracies for which the demo has something to show: outside of them the build fails."""

TOKENIZER = build_tokenizer()


@dataclass(frozen=True)
class Accuracy:
    """Sampled accuracy at temperature 1 on the held-out problems."""

    avg_at_8: float
    """Mean over all problems and samples."""
    pass_at_8: float
    """Share of problems with at least one right answer in eight samples."""


def new_model(seed: int) -> Qwen3ForCausalLM:
    """Return an untrained model; `head_dim` 32 is the smallest that vLLM runs on a CPU."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(TOKENIZER),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=MARKERS.index(STOP),
            pad_token_id=MARKERS.index(PAD),
        )
    )


def chat_prompt(numbers: Numbers) -> str:
    """Return the rendered user turn, up to where the response starts."""
    messages = [{"role": "user", "content": problem_text(numbers)}]
    return str(TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def train(
    model: Qwen3ForCausalLM,
    *,
    steps: int,
    peak_lr: float,
    seed: int,
    solve: Callable[[Numbers], str],
    checkpoint_step: int = 0,
) -> Qwen3ForCausalLM:
    """Train the model in place on solved problems and return a copy of it as it was at `checkpoint_step`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps)
    )
    problems = stream("train", seed=seed)
    checkpoint = model
    model.train()
    for step in range(1, steps + 1):
        batch = list(itertools.islice(problems, BATCH_SIZE))
        loss = response_loss(model, [(chat_prompt(numbers), solve(numbers)) for numbers in batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == checkpoint_step:
            checkpoint = copy.deepcopy(model)
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss.item():.4f}", flush=True)
    return checkpoint


def response_loss(model: Qwen3ForCausalLM, turns: list[tuple[str, str]]) -> torch.Tensor:
    """Return the mean cross entropy of the response tokens, stop token included."""
    texts = [prompt + response + STOP for prompt, response in turns]
    tokens_BT = TOKENIZER(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    labels_BT = tokens_BT.masked_fill(tokens_BT == MARKERS.index(PAD), -100)
    for row, (prompt, _) in enumerate(turns):
        labels_BT[row, : len(TOKENIZER(prompt)["input_ids"])] = -100
    logits_BTV = model(input_ids=tokens_BT).logits
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)


def save(model: Qwen3ForCausalLM, path: Path) -> None:
    """Save a bfloat16 copy of the model with its tokenizer."""
    copy.deepcopy(model).bfloat16().save_pretrained(path)
    build_tokenizer().save_pretrained(path)


@torch.inference_mode()
def measure(path: Path, *, seed: int) -> Accuracy:
    """Load a saved model and sample every held-out problem eight times; an answer must end with the stop token."""
    model = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    problems = distinct("heldout", NUM_HELDOUT, seed=0)
    prompts = TOKENIZER([chat_prompt(numbers) for numbers in problems], padding=True, return_tensors="pt")
    torch.manual_seed(seed)
    # The upstream protocol of `generate` names attributes that no text model declares.
    tokens_BT = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        **prompts,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=SAMPLES_PER_PROBLEM,
        max_new_tokens=MAX_RESPONSE_TOKENS,
    )
    responses = TOKENIZER.batch_decode(tokens_BT[:, prompts["input_ids"].shape[1] :])
    right = torch.tensor(
        [
            f"####{sum(problems[row // SAMPLES_PER_PROBLEM])}{STOP}" in response
            for row, response in enumerate(responses)
        ]
    ).view(NUM_HELDOUT, SAMPLES_PER_PROBLEM)
    return Accuracy(avg_at_8=right.float().mean().item(), pass_at_8=right.any(dim=1).float().mean().item())


def build(out_path: Path, *, seed: int) -> None:
    """Train, save and measure both models; raise if an accuracy is outside of its limits."""
    started_s = time.monotonic()
    (out_path / "card.json").unlink(missing_ok=True)
    teacher = new_model(seed)
    student = train(
        teacher,
        steps=TEACHER_STEPS,
        peak_lr=4e-3,
        seed=seed,
        solve=solution_text,
        checkpoint_step=CHECKPOINT_STEP,
    )
    rng = random.Random(seed)
    train(
        student,
        steps=STUDENT_STEPS,
        peak_lr=2e-3,
        seed=seed + 1,
        solve=lambda numbers: careless_solution_text(numbers, rng, slip_rate=SLIP_RATE),
    )
    card: dict[str, object] = {
        "command": f"python examples/arithmetic/build_models.py --force --seed {seed}",
        "seed": seed,
        "threads": torch.get_num_threads(),
        "teacher_steps": TEACHER_STEPS,
        "student_checkpoint_step": CHECKPOINT_STEP,
        "student_steps": STUDENT_STEPS,
        "student_slip_rate": SLIP_RATE,
    }
    for role, model in (("teacher", teacher), ("student", student)):
        save(model, out_path / role)
        accuracy = measure(out_path / role, seed=seed)
        print(f"{role}: {accuracy}", flush=True)
        low, high = LIMITS[role]
        if not low <= accuracy.avg_at_8 <= high:
            raise ValueError(f"{role} accuracy must be in [{low}, {high}], got {accuracy.avg_at_8:.3f}")
        card[role] = {name: round(value, 4) for name, value in asdict(accuracy).items()}
    card["build_s"] = round(time.monotonic() - started_s)
    (out_path / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the demo's teacher and student.")
    parser.add_argument("--out", type=Path, default=MODELS_PATH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="build again where the models exist")
    arguments = parser.parse_args()
    parts = ("card.json", "teacher/model.safetensors", "student/model.safetensors")
    if all((arguments.out / part).exists() for part in parts) and not arguments.force:
        print(f"{arguments.out}: models exist, nothing to do")
        return
    torch.set_num_threads(arguments.threads)
    build(arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
