"""Sizes and shapes of models, given or read from the config.json of their folders; no heavy library is needed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from settings.engine import Section
from settings.run import RunConfig

Billions = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelConfig(Section):
    """How large a model is."""

    parameters_b: Billions | None = None
    """Parameters in billions; by default from the `config.json` of the model's folder, if it is a folder here."""
    active_b: Billions | None = None
    """Parameters in billions that one token uses (mixture of experts); by default all."""
    bytes_per_weight: Annotated[float, Field(gt=0)] = 2.0
    """Bytes of a weight in the engine: 2 for bfloat16, 1 for fp8."""
    kv_bytes_per_token: Annotated[float, Field(gt=0)] | None = None
    """Bytes of keys and values of one token; by default from `config.json`, else those of dense models of this
    size with grouped-query attention (about 100 kB and 5 kB per billion parameters)."""


class ModelsConfig(Section):
    """Sizes of the models."""

    student: ModelConfig = ModelConfig()
    """The student."""
    teacher: ModelConfig = ModelConfig()
    """The teacher; further teachers and the reference model are taken to be as large."""


@dataclass(frozen=True)
class ModelSize:
    """A model in numbers."""

    num_parameters: float
    num_active: float
    weight_bytes: float
    kv_bytes_per_token: float


def size_of(model: ModelConfig, path: str, *, field: str) -> ModelSize:
    """The size of a model; ValueError naming `field` if it is neither given nor in the folder `path`."""
    found = _read_json(Path(path) / "config.json")
    num = model.parameters_b * 1e9 if model.parameters_b else count_parameters(found)
    if num is None:
        raise ValueError(
            f"{field}.parameters_b: required, since {path} is no folder here with the config.json of a dense model"
        )
    kv = model.kv_bytes_per_token or _kv_bytes(found) or 100e3 + 5e-6 * num
    active = model.active_b * 1e9 if model.active_b else num
    return ModelSize(num, active, num * model.bytes_per_weight, kv)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _kv_bytes(config: Mapping[str, Any]) -> float | None:
    """Keys and values of one token in bfloat16; None without a known architecture."""
    if not {"num_hidden_layers", "hidden_size", "num_attention_heads"} <= config.keys():
        return None
    num_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return 2.0 * 2 * config["num_hidden_layers"] * num_heads * head_dim(config)


def count_parameters(config: Mapping[str, Any]) -> float | None:
    """Parameters of a dense decoder with gated feed-forward layers; None for anything else."""
    needed = {"num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"}
    if not needed <= config.keys() or any("expert" in key for key in config):
        return None
    hidden, width, num_heads = config["hidden_size"], head_dim(config), config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    attention = hidden * width * (2 * num_heads + 2 * num_kv_heads)
    layer = attention + 3 * hidden * config["intermediate_size"]
    embeddings = 1 if config.get("tie_word_embeddings") else 2
    return float(config["num_hidden_layers"] * layer + embeddings * config["vocab_size"] * hidden)


NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Shape:
    """A model in numbers."""

    num_parameters: float
    num_layers: int
    hidden: int
    heads_width: int
    """Attention heads x their width."""
    kv_width: int
    """Key-value heads x their width."""
    feed_forward: int
    num_rows: int
    """Of the output head."""
    context: int = 1
    """Positions that the model was made for."""
    quantised_bytes: float | None = None
    """Bytes per parameter of a model whose files are quantised, else None."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, num_parameters: float | None) -> "Shape | None":
        """The shape in a config.json; None if it does not tell, or the number of parameters is not known."""
        if num_parameters is None or any(config.get(name) is None for name in NEEDED):
            return None
        heads = config["num_attention_heads"]
        width = head_dim(config)
        return cls(
            num_parameters=num_parameters,
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads_width=heads * width,
            kv_width=(config.get("num_key_value_heads") or heads) * width,
            feed_forward=config.get("intermediate_size") or 4 * config["hidden_size"],
            num_rows=config["vocab_size"],
            context=config.get("max_position_embeddings") or 1,
        )

    def kv_bytes_per_token(self, item_bytes: int) -> float:
        """Keys and values of one token in every layer."""
        return 2.0 * self.num_layers * self.kv_width * item_bytes

    def activation_bytes_per_token(self, item_bytes: int) -> float:
        """What one layer keeps of one token for backward: inputs of its products, and four norms in float32."""
        products = 8 * self.hidden + 4 * (self.heads_width + 2 * self.kv_width) + 4 * self.feed_forward
        return float(item_bytes * products + 4 * 4 * self.hidden)


SAMPLES, SAMPLE_BYTES = 16, 2**16
"""How much of each file of weights a fingerprint reads."""


def model_fingerprint(path: str) -> str | None:
    """The same for two copies of a model, another one after any training of it; None if it is no folder here.

    Of the weights parts all over each file are read: every step of an optimizer changes nearly all of them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    config = {k: v for k, v in _read_json(folder / "config.json").items() if k not in ("transformers_version",)}
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for number in range(SAMPLES):
                opened.seek(number * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(opened.read(SAMPLE_BYTES))
    return found.hexdigest()


def model_paths(config: RunConfig) -> dict[str, str]:
    """Model folders by role: of the student, the teachers, and the reference if there is one."""
    paths = {"student": config.student.model_path}
    paths |= {role: each.model_path for role, each in config.teacher_of_role.items()}
    reference = config.reference.model_path
    return paths if reference is None else paths | {"reference": reference}
