"""Model folders and their tokenizers: loading them, stop tokens, and the bytes of every token id.

The same text may be written differently in two vocabularies: byte-level ones (Qwen, Llama 3, SmolLM) write each
byte as a printable letter, sentencepiece ones a space as U+2581 and single bytes as `<0x0A>`, others plain text.
Added tokens are plain text in all of them.
"""

import json
import logging
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from inputs.templates import MARK, Chat, RefusedChatError, render_chats
from settings.exit_codes import first_line

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""`organisation/model`, if there is no local folder named like the organisation."""
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Weights in these files are Python pickles: whoever made them can run code where they are read."""
ADAPTER, INDEX = "adapter_config.json", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "*.model", "added_tokens.json", "special_tokens_map.json")
MAX_TOKENIZER_BYTES, LARGE_BYTES = 200_000_000, 50_000_000
"""The largest known file has 35 MB."""
MAX_TOKENS = 2**20
logger = logging.getLogger(__name__)
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
LETTERS = {letter: value for value, letter in bytes_to_unicode().items()}


def check_model_folder(path: str, field: str) -> None:
    """ValueError naming `field` unless `path` is a folder with a Hugging Face model, or a name on the hub.

    A folder that has weights, but none as safetensors, is refused, and so is one with an adapter.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_no_adapter(folder, field)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{field}: {path} holds no config.json, so it is not a Hugging Face model folder")
        pickle = next((file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
        if pickle is not None and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{field}: {path} holds its weights only as {pickle}, which can run code when it is read; if you "
                f"trust it, convert it: AutoModelForCausalLM.from_pretrained({path!r}).save_pretrained(NEW_FOLDER)"
            )
    elif not HUB_NAME.fullmatch(path) or folder.parent.is_dir():
        raise ValueError(f"{field}: no such model folder: {path}")


def _check_no_adapter(folder: Path, field: str) -> None:
    """ValueError for a LoRA adapter: alone it is no model, and beside weights only one side would apply it."""
    if not (folder / ADAPTER).is_file():
        return
    is_alone = not (folder / "config.json").is_file() or not _weight_files(folder)
    what = (
        "an adapter and no model" if is_alone else "an adapter beside its weights, which engines would not apply"
    )
    raise ValueError(
        f"{field}: {folder} holds {what} ({ADAPTER}); merge it into its base model (PEFT's merge_and_unload) and "
        "save that in a folder of its own"
    )


def _weight_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors") if not file.name.startswith("adapter"))


def check_weights(path: str, field: str) -> None:
    """ValueError naming `field` if `path` is a folder in which weights are missing: all, or files of its index."""
    folder = Path(path)
    if not folder.is_dir():
        return
    found, index = _weight_files(folder), folder / INDEX
    if not found:
        raise ValueError(f"{field}: {path} holds no weights (*.safetensors)")
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    with _explained(path, field, f"{INDEX} cannot be read in"):
        named = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if missing := sorted(named - {*found}):
        raise ValueError(
            f"{field}: {path} lacks {missing[0]} ({len(missing)} of the {len(named)} files of its weights)"
        )


def load_tokenizer(path: str, field: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer; ValueError naming `field` if there is none, if it needs code that is not trusted, or if it
    is larger than any that a model has.
    """
    _check_size(Path(path), field)
    with _explained(path, field, "no tokenizer can be loaded from"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    # Without tokenizer files transformers builds some tokenizers from the model's type alone: special tokens only.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(f"{field}: no tokenizer can be loaded from {path}: its vocabulary is empty")
    _check_num_tokens(len(tokenizer), path, field)
    return tokenizer


def _check_size(folder: Path, field: str) -> None:
    """ValueError for files that are too large, or name too many tokens; one that takes long is announced."""
    for file in sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}):
        size = file.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise ValueError(
                f"{field}: {file} has {size:,} bytes; a tokenizer's file has at most {MAX_TOKENIZER_BYTES:,}"
            )
        if size > LARGE_BYTES:
            logger.warning("%s: reading %s takes long, it has %d MB", field, file, size // 1_000_000)
            if file.name == "tokenizer.json":
                _check_num_tokens(_num_tokens_in(file), str(folder), field)


def _check_num_tokens(number: int, path: str, field: str) -> None:
    if number > MAX_TOKENS:
        raise ValueError(f"{field}: the tokenizer of {path} has {number:,} tokens; at most {MAX_TOKENS:,} can be")


def _num_tokens_in(file: Path) -> int:
    """The tokens that a file names, without building a tokenizer of them; 0 if it does not tell."""
    try:
        content = json.loads(file.read_bytes())
        return len(content["model"]["vocab"]) + len(content.get("added_tokens", ()))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):  # who loads it says what is wrong
        return 0


def num_known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id of the vocabulary, which may have gaps (`len` counts its tokens)."""
    return max(tokenizer.get_vocab().values()) + 1


def model_limits(path: str, field: str, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """Return (context length, rows of the output head) of a model; ValueError naming `field` without a config."""
    with _explained(path, field, "no model configuration in"):
        text: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
        return int(text.max_position_embeddings), int(text.vocab_size)


def position_limit(path: str, field: str, *, trust_remote_code: bool = False) -> tuple[str, int] | None:
    """Return (rope type, longest sequence) up to which a model computes all sequences alike; None without a limit.

    Two types look at the longest position of a forward pass, and turn all sequences of a micro-batch in other ways
    beyond a length: `longrope` beyond its original context, `dynamic` beyond the longest it was made for. Engines
    decide once, by the longest sequence that they may be given; of `dynamic` with an original context, they always
    turn in another way (0).
    """
    with _explained(path, field, "no model configuration in"):
        text: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    ropes: Any = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    made_for = int(text.max_position_embeddings)
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):  # of all layers, or by kind
        kind = str(rope.get("rope_type") or rope.get("type") or "")
        own = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if kind == "longrope":
            return kind, int(own or made_for)
        if "dynamic" in kind:
            return kind, made_for if own in (None, made_for) else 0
    return None


def text_config(path: str, field: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The configuration of a model's text decoder as JSON values; ValueError naming `field` without one."""
    with _explained(path, field, "no model configuration in"):
        text: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
        return text.to_dict()


def head_width(path: str, field: str, *, trust_remote_code: bool = False) -> int:
    """Return the width of the hidden states before the output head; ValueError if it is no plain product.

    The learner repeats the head of a frozen teacher as one product of hidden states and weight.
    """
    text: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{field}: {path} scales or caps its logits ({name}), so it cannot serve this objective"
            )
    return int(text.hidden_size)


def stop_ids(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    field: str = "model_path",
    trust_remote_code: bool = False,
    template_arguments: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Stop ids of a model, from generation config, model config and its tokenizer; ValueError naming `field` if
    one of them is broken, or none says any.

    The first is the model's own label for "the answer ends here": the id that ends a turn in its chat template if
    it is one of them, else its tokenizer's if a file names it too. The places in the files' lists mean nothing:
    Llama 3.1 and Gemma name the end of a text first.
    """
    ids: list[int] = []
    with _explained(path, field, "no stop tokens can be read from"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        for source in (_generation_config(path), config, tokenizer):
            value = getattr(source, "eos_token_id", None)
            ids += [] if value is None else [operator.index(each) for each in np.atleast_1d(value).tolist()]
    if not ids:
        raise ValueError(f"{path}: neither generation config, model config nor tokenizer names a stop token")
    own: Any = tokenizer.eos_token_id
    try:
        end = turn_end(tokenizer, ids, template_arguments)
    except RefusedChatError:  # the check of the template says what is wrong with it
        end = None
    if end not in ids and ids.count(own) > 1:
        end = own
    return tuple(dict.fromkeys([end, *ids] if end in ids else ids))


def turn_end(
    tokenizer: PreTrainedTokenizerBase, stops: Collection[int], template_arguments: Mapping[str, Any] | None = None
) -> int | None:
    """The id with which the chat template ends an answer: the first that is special, or one of `stops`.

    Where nothing of the kind follows the answer, one of `stops` with which the next turn begins, as in GLM-4; None
    without one, or without a template. RefusedChatError if it gives no text.
    """
    if not tokenizer.chat_template:
        return None
    question = {"role": "user", "content": "1"}
    messages = [question, {"role": "assistant", "content": MARK}]

    def first_after(messages: list[dict[str, str]], ends: Collection[int]) -> int | None:
        [text] = render_chats(tokenizer, [Chat(messages)], template_arguments or {})
        _, found, tail = text.rpartition(MARK)
        ids: list[int] = tokenizer.encode(tail, add_special_tokens=False) if found else []
        return next((index for index in ids if index in ends), None)

    end = first_after(messages, {*special_tokens(tokenizer), *stops})
    if end is None:
        with suppress(RefusedChatError):  # a template may take one question only
            end = first_after([*messages, question], stops)
    return end


@contextmanager
def _explained(path: str, field: str, what: str) -> Iterator[None]:
    """Turn what transformers says of a broken model into one line that names the field.

    It has no error of its own for that: files that are no JSON, or hold other things than it expects, give any.
    Meanwhile it logs errors alone, so that the line stays the only one.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            section = field.removesuffix(".model_path")
            raise ValueError(
                f"{field}: {path} needs Python code that comes with it; read that code, and if you trust it, set "
                f"{section}.trust_remote_code true"
            ) from error
        raise ValueError(f"{field}: {what} {path}: {first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _generation_config(path: str) -> GenerationConfig | None:
    """The model's generation settings; None without any, as of many models. A broken file is an error."""
    found = cached_file(path, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    return None if found is None else GenerationConfig.from_pretrained(path)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of every id that the tokenizer knows, special and added tokens included."""
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    kinds = decoder_kinds(tokenizer)
    found: dict[int, bytes] = {}
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            found[index] = added[index].encode()
        elif "ByteLevel" in kinds:
            found[index] = _of_letters(token)
        elif kinds & {"ByteFallback", "Metaspace"}:
            found[index] = _of_piece(token)
        else:
            found[index] = token.encode()
    return found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Text of every id that stands for no text: marks of turns, ends, padding."""
    marked = {index: each.content for index, each in tokenizer.added_tokens_decoder.items() if each.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return marked | {index: str(text) for index, text in named if index is not None}


def decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Names of the decoders that turn tokens into text: `ByteLevel`, `ByteFallback`, `Metaspace`, ...

    A tokenizer without one of the `tokenizers` library is taken for a sentencepiece one.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if backend is None:
        return frozenset({"ByteFallback"})
    if decoder is None:
        return frozenset()
    state = json.loads(decoder.__getstate__())
    return frozenset(each["type"] for each in [state, *state.get("decoders", ())])


def _of_letters(token: str) -> bytes:
    """Bytes of a byte-level token; of one that holds other letters, its text."""
    values = [LETTERS.get(letter) for letter in token]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else token.encode()


def _of_piece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
