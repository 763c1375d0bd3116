"""What every token id stands for, in bytes: the same text may be written differently in two vocabularies.

Byte-level vocabularies (Qwen, Llama 3, SmolLM) write each byte as one printable letter, sentencepiece ones a space
as U+2581 and single bytes as `<0x0A>`, others plain text. Added tokens are plain text in all of them.
"""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
LETTERS = {letter: value for value, letter in bytes_to_unicode().items()}


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
