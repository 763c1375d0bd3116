"""Folders like those of Qwen3-Base and Qwen3: tokenizer, chat template, stop tokens; of weights, the embedding."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, TURN, STOP]
THINKING = ["<think>", "</think>"]
PADDED_ROWS = 384
"""Rows of the output head: more than the tokenizer has ids, as in Qwen3."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
)


def qwen3_folder(path: Path, *, is_base: bool) -> Path:
    """Write a folder of a base model (ends with <|endoftext|>) or a chat model (ends with <|im_end|>)."""
    path.mkdir(parents=True)
    stop = END_OF_TEXT if is_base else STOP
    tokenizer = _tokenizer(stop)
    tokenizer.save_pretrained(path)
    config = {
        **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": PADDED_ROWS},
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 40960},
        **{"tie_word_embeddings": True, "eos_token_id": tokenizer.convert_tokens_to_ids(stop)},
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": np.zeros((PADDED_ROWS, 32), np.float32)}, path / "model.safetensors")
    return path


def _tokenizer(stop: str) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(THINKING)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=stop, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
