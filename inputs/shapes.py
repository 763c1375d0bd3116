"""Sizes of a decoder from its config.json: parameters, cache per token, saved activations per token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inputs.models import head_dim

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
