"""Tokenizers of student and teacher: loading, the check that they are the same, and their stop tokens."""

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""`organisation/model`, where no local folder is called like the organisation."""


def check_model_folder(path: str, field: str) -> None:
    """ValueError naming `field` unless `path` is a folder with a Hugging Face model, or a name on the hub."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{field}: {path} holds no config.json, so it is not a Hugging Face model folder")
    elif not HUB_NAME.fullmatch(path) or folder.parent.is_dir():
        raise ValueError(f"{field}: no such model folder: {path}")


def load_tokenizer(path: str, field: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; ValueError naming `field` if there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{field}: no tokenizer can be loaded from {path}: {str(error).splitlines()[0]}"
        ) from error
    # Without tokenizer files transformers builds some tokenizers from the model's type alone: special tokens only.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(f"{field}: no tokenizer can be loaded from {path}: its vocabulary is empty")
    return tokenizer


def check_same_vocabulary(
    student: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    *,
    field: str = "teacher.model_path",
    who: str = "teacher",
) -> None:
    """ValueError naming `field`, and the first id that differs, unless every id means the same on both sides."""
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in other.get_vocab().items()}
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    if differing:
        first = differing[0]
        raise ValueError(
            f"{field}: the {who} has another tokenizer than the student: {len(differing)} ids "
            f"differ, the first is {first} (student {ours.get(first)!r}, {who} {theirs.get(first)!r})"
        )


def num_known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id of the vocabulary, which may have gaps (`len` counts its tokens)."""
    return max(tokenizer.get_vocab().values()) + 1


def model_limits(path: str, field: str) -> tuple[int, int]:
    """Return (context length, rows of the output head) of a model; ValueError naming `field` without a config."""
    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: no model configuration in {path}: {str(error).splitlines()[0]}") from error
    text = config.get_text_config()
    return int(text.max_position_embeddings), int(text.vocab_size)


def head_width(path: str, field: str) -> int:
    """Return the width of the hidden states before the output head; ValueError if it is no plain product.

    The learner repeats the head of a frozen teacher as one product of hidden states and weight.
    """
    text: Any = AutoConfig.from_pretrained(path).get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{field}: {path} scales or caps its logits ({name}), so it cannot serve this objective"
            )
    return int(text.hidden_size)


def stop_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Stop ids of a model, from generation config, model config and its tokenizer, in that order."""
    ids: list[int] = []
    for source in (_generation_config(path), AutoConfig.from_pretrained(path), tokenizer):
        value = getattr(source, "eos_token_id", None)
        ids += [] if value is None else ([value] if isinstance(value, int) else list(value))
    if not ids:
        raise ValueError(f"{path}: neither generation config, model config nor tokenizer names a stop token")
    return tuple(dict.fromkeys(ids))


def _generation_config(path: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # many models have none
        return None
