"""Buckets -> a CPU engine without an intermediate copy: layers are packed in place from the buckets.

On CPUs vLLM keeps of a linear layer only a packed copy for its matrix product. Its general reload builds every
layer anew, copies the tensors into it and packs that. Decoders whose checkpoints store layers as they are used can
be packed from the buckets. Everything else takes the general way (`actors/vllm/weight_transfer.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.platforms import current_platform

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models whose loaders rename, join and copy tensors, and change none."""


@dataclass(frozen=True)
class PackedLayers:
    """The layers of a model that hold nothing but packed copies, by the names of their weights in checkpoints."""

    model: Any
    linears: Mapping[tuple[str, ...], Any]
    paths: tuple[str, ...]
    """Of those layers, in the model."""
    embeddings: tuple[Any, ...]
    """Embeddings and heads, which hold a packed copy in addition to their weight."""

    def load(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Load all tensors of a checkpoint; returns the names of the parameters that got one.

        ValueError where a layer's is missing or has another shape.
        """
        packed = {name for names in self.linears for name in names}
        if missing := sorted(packed - tensors.keys()):
            raise ValueError(f"the weight set has no {missing[0]} ({len(missing)} tensors are missing)")
        for names, layer in self.linears.items():
            weight = joined([tensors[name] for name in names]).to(layer.params_dtype)
            expected = (layer.output_size, layer.input_size)
            if tuple(weight.shape) != expected:
                raise ValueError(f"{', '.join(names)}: expected {expected} together, got {tuple(weight.shape)}")
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.quant_method.process_weights_after_loading(layer)
        loaded = self.model.load_weights([(name, each) for name, each in tensors.items() if name not in packed])
        for layer in self.embeddings:
            layer.quant_method.process_weights_after_loading(layer)
        return loaded | {f"{path}.weight" for path in self.paths}


def packed_layers(model: nn.Module) -> PackedLayers | None:
    """The layers of a loaded model, or None if it must take the general way."""
    keeps_what_it_gets = current_platform.is_zen_cpu()  # its layers need not be packed
    if type(model).__name__ not in ARCHITECTURES or keeps_what_it_gets:
        return None
    linears: dict[tuple[str, ...], Any] = {}
    paths, embeddings = list[str](), list[Any]()
    for path, layer in model.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        if isinstance(layer, LinearBase) and _is_only_packed(layer):
            linears[_checkpoint_names(model, path)] = layer
            paths.append(path)
        elif isinstance(layer, VocabParallelEmbedding) and isinstance(
            layer.quant_method, UnquantizedEmbeddingMethod
        ):
            embeddings.append(layer)
        elif not isinstance(layer, RMSNorm):
            return None
    return PackedLayers(model, linears, tuple(paths), tuple(embeddings))


def joined(parts: list[Tensor]) -> Tensor:
    """Matrices one below the other; without a copy where they follow each other in memory."""
    first, rows = parts[0], sum(len(part) for part in parts)
    memory, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for part in parts:
        follows = part.untyped_storage().data_ptr() == memory and part.data_ptr() == end
        if not follows or part.shape[1:] != first.shape[1:]:
            return torch.cat(parts)
        end += part.nbytes
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _is_only_packed(layer: Any) -> bool:
    """Whether a whole layer is on this CPU, and nothing of its weight is but the packed copy."""
    is_plain = type(layer.quant_method) is UnquantizedLinearMethod and layer.weight.device.type == "cpu"
    return is_plain and layer.tp_size == 1 and layer.weight.numel() == 0


def _checkpoint_names(model: Any, path: str) -> tuple[str, ...]:
    parent, _, own = path.rpartition(".")
    return tuple(f"{parent}.{name}.weight" for name in model.packed_modules_mapping.get(own, [own]))
