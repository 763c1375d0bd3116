"""The demo's tokenizer: 32 ids, one per symbol, with `####` and the chat markers as single tokens.

    python examples/arithmetic/tokenizer.py --out /tmp/tokenizer

A chat turn costs two tokens beyond its text: "12+30" becomes `<|user|>12+30<|assistant|>`, and the response
ends with `<|im_end|>`, the stop token.
"""

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
STOP = "<|im_end|>"
UNKNOWN = "<|unk|>"
MARKERS = (PAD, "<|endoftext|>", STOP, "<|system|>", "<|user|>", "<|assistant|>", UNKNOWN)
SYMBOLS = (*"0123456789", "+", "=", "\n", "####", *"-*/()?.,: #")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; a symbol outside the vocabulary becomes `<|unk|>`."""
    vocabulary = {token: index for index, token in enumerate((*MARKERS, *SYMBOLS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"####|[\s\S]"), behavior="isolated")
    # Without a decoder the tokens would be joined by spaces.
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=STOP,
        unk_token=UNKNOWN,
        additional_special_tokens=[marker for marker in MARKERS if marker not in (PAD, STOP, UNKNOWN)],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Save the demo's tokenizer as a Hugging Face folder.")
    parser.add_argument("--out", type=Path, required=True)
    build_tokenizer().save_pretrained(parser.parse_args().out)


if __name__ == "__main__":
    main()
