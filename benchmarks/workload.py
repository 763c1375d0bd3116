"""The workload that ours and the peers' trainers are timed on: two models, a tokenizer, and prompts of one length.

    .venv/bin/python benchmarks/workload.py --models qwen3

Work per step is constant: every prompt has the same number of tokens, and no response ends before its limit,
because the row of the stop token in the (tied) output embedding is zero. Its logit is then 0, which is never among
the largest 20, so sampling with top-k 20 cannot draw it. Nothing is made where the folder has it already.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS_PATH = ROOT / "benchmarks" / "models"
SMOLLM2_PATH = ROOT / "examples" / "smollm2" / "models"

PAD, STOP = "<pad>", "<stop>"
CHAT_TEMPLATE = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"
UNUSED_TOKEN = "<empty_output>"  # of SmolLM2's tokenizer: no text has it
SHORT_WORDS = ("the", "of", "in", "to", "is", "was", "for", "on", "with", "at", "by", "from")
NUM_PROMPTS = 4096
SHARPNESS = 10.0
"""Factor of random models' logits: a random model's tokens are all about as likely, and then the reward and all
gradients are so small (1e-15) that they take the slow path of numbers near the end of the range."""
TOP_K = 20


@dataclass(frozen=True)
class Workload:
    """What one step does. The folder holds `student/`, `teacher/` and `prompts.jsonl`."""

    path: Path
    batch_size: int = 32
    prompt_tokens: int = 64
    response_tokens: int = 256
    top_p: float = 0.95
    top_k: int = TOP_K
    alpha: float = 5.0
    learning_rate: float = 1e-6

    @property
    def student(self) -> Path:
        """Folder of the student."""
        return self.path / "student"

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        return self.path / "teacher"

    @property
    def prompts(self) -> Path:
        """JSON lines with `id`, `problem`, `answer`."""
        return self.path / "prompts.jsonl"

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a prompt with its response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def step_tokens(self) -> int:
        """Prompt and response tokens of a step."""
        return self.batch_size * self.sequence_tokens


def make(models: str, **sizes: Any) -> Workload:
    """Return the workload `qwen3` (27 M teaches 5.8 M) or `smollm2` (SmolLM2-135M teaches itself); made if new."""
    workload = Workload(MODELS_PATH / models, **sizes)
    stamp = workload.path / f"complete-{workload.prompt_tokens}.json"
    if not stamp.is_file():
        {"qwen3": _make_qwen3, "smollm2": _copy_smollm2}[models](workload)
        write_prompts(workload)
        stamp.write_text(json.dumps({"models": models, "prompt_tokens": workload.prompt_tokens}) + "\n")
    return workload


def read_prompts(workload: Workload) -> list[str]:
    """The texts of all prompts."""
    return [json.loads(line)["problem"] for line in workload.prompts.read_text().splitlines()]


def _make_qwen3(workload: Workload) -> None:
    sizes = {"teacher": (512, 1536, 8), "student": (256, 768, 6)}
    for seed, (role, (hidden, intermediate, layers)) in enumerate(sizes.items()):
        write_qwen3(
            workload.path / role,
            seed=seed,
            vocab_size=4096,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 128,
            head_dim=64,
            max_position_embeddings=1024,
        )


def write_qwen3(path: Path, *, seed: int, **shape: int) -> int:
    """Write a random bfloat16 model that does not stop, with a tokenizer; returns its number of parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model = Qwen3ForCausalLM(Qwen3Config(**shape, **tokens, tie_word_embeddings=True))
    _silence(model, 1)
    model.model.norm.weight.data *= SHARPNESS
    model.bfloat16().save_pretrained(path)
    _word_tokenizer(shape["vocab_size"]).save_pretrained(path)
    return sum(parameter.numel() for parameter in model.parameters())


def _word_tokenizer(vocabulary: int) -> Any:
    """Ids 2 and above are the words w2, w3, ...; every text of T words has T tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {PAD: 0, STOP: 1} | {f"w{index}": index for index in range(2, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=STOP, unk_token=PAD, padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _copy_smollm2(workload: Workload) -> None:
    """The teacher of examples/smollm2 in both roles, with a stop token that it never draws."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = SMOLLM2_PATH / "teacher"
    if not source.is_dir():
        raise SystemExit(f"{source} is missing: make it with .venv/bin/python examples/smollm2/build_models.py")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token, tokenizer.chat_template = UNUSED_TOKEN, CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(source, dtype="bfloat16")
    stop = tokenizer.convert_tokens_to_ids(UNUSED_TOKEN)
    model.config.eos_token_id = model.generation_config.eos_token_id = stop
    _silence(model, stop)
    for folder in (workload.student, workload.teacher):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _silence(model: Any, token_id: int) -> None:
    model.get_output_embeddings().weight.data[token_id] = 0


def write_prompts(workload: Workload, *, vocabulary: int = 4096) -> None:
    """Write the prompts, words below `vocabulary`, with the student's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer, rng = AutoTokenizer.from_pretrained(workload.student), random.Random(0)
    with workload.prompts.open("w") as file:
        for index in range(NUM_PROMPTS):
            text = _text_of_length(tokenizer, workload.prompt_tokens, rng, vocabulary)
            file.write(json.dumps({"id": f"p{index}", "problem": text, "answer": ""}) + "\n")


def _text_of_length(tokenizer: Any, num_tokens: int, rng: random.Random, vocabulary: int) -> str:
    """A random text of exactly so many tokens."""
    words = [f"w{rng.randrange(2, vocabulary)}" for _ in range(num_tokens)]
    if len(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]) == num_tokens:
        return " ".join(words)
    words = [rng.choice(SHORT_WORDS) for _ in range(num_tokens - 1)]
    text = " ".join(["a", *words])  # a tokenizer of real text, in which each of these is one token
    num_found = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if num_found != num_tokens:
        raise ValueError(f"a prompt of {num_tokens} tokens has {num_found} with this tokenizer")
    return text


def main() -> None:
    """Make the folder of a workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("qwen3", "smollm2"), default="qwen3")
    arguments = parser.parse_args()
    print(make(arguments.models).path)


if __name__ == "__main__":
    main()
