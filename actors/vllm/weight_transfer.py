"""The worker side of a weight load: a backend of vLLM's weight-transfer registry that reads published buckets.

They are in a shared-memory file, so that all processes of an engine (tensor parallel) read the same bytes and no
RPC carries tensors, or in this process, for an engine of one process (`actors/vllm/staging.py`). On CPUs, some
models need no full reload (`actors/vllm/packed_layers.py`). Importing this module registers the backend.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS
from vllm.platforms import current_platform

from actors.vllm.packed_layers import PackedLayers, packed_layers
from actors.vllm.staging import bucket_tensors

BACKEND = "poweropd_buckets"


@dataclass
class BucketInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says where its buckets are."""


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):
    """One weight set: buckets back to back in the file `path`, or `buckets` of this process.

    Tensors are (name, shape, dtype, bucket, byte offset in it).
    """

    path: str | None
    buckets: Sequence[np.ndarray]
    bucket_bytes: tuple[int, ...]
    tensors: list[tuple[str, tuple[int, ...], str, int, int]]


class BucketTransferEngine(WeightTransferEngine[BucketInitInfo, BucketUpdateInfo]):
    """Loads full Hugging Face tensors from buckets into the engine's (fused, sharded) parameters."""

    init_info_cls = BucketInitInfo
    update_info_cls = BucketUpdateInfo

    @cached_property
    def _packed(self) -> PackedLayers | None:
        return packed_layers(self.model)

    @cached_property
    def _tied_heads(self) -> list[tuple[Any, Any]]:
        return tied_heads(self.model)

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return parameters_of_folders(self.model)

    def init_transfer_engine(self, init_info: BucketInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Put the layers into the state in which checkpoint tensors can be loaded."""
        _ = self._tied_heads, self._parameters  # as they are before the first load
        _pack_no_lookup(self.model)
        if self._packed is None:
            _pack_experts_again(self.model)
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """Load one weight set; on CPUs there is no stream to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        """Load the tensors in the buckets; ValueError naming a parameter that got none of them."""
        model: Any = self.model
        tensors = _views(update_info)
        try:
            loaded = model.load_weights(tensors) if self._packed is None else self._packed.load(dict(tensors))
            if self.model_config.quantization is None:
                check_all_loaded(model, self._parameters, loaded)
        except BaseException:
            self.finish_weight_update()  # else a layer would count what it got towards the next load
            raise

    def finish_weight_update(self) -> None:
        """Bring the loaded tensors into their serving layout."""
        if self._packed is None:
            finalize_layerwise_reload(self.model, self.model_config)
            for head, embedding in self._tied_heads:
                head.weight = embedding.weight
                head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Holds nothing."""


def _views(update: BucketUpdateInfo) -> list[tuple[str, torch.Tensor]]:
    buckets = bucket_tensors(update.path, update.buckets, update.bucket_bytes)
    views = []
    for name, shape, dtype_name, bucket, offset in update.tensors:
        dtype = getattr(torch, dtype_name)
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        views.append((name, buckets[bucket][offset : offset + num_bytes].view(dtype).view(*shape)))
    return views


def _pack_no_lookup(model: nn.Module) -> None:
    """Let input embeddings be without a packed copy, which on CPUs vLLM makes of every embedding, for heads.

    One that only looks rows up never uses it, and packing it takes as long as packing the head.
    """
    embedding: Any = getattr(getattr(model, "model", None), "embed_tokens", None)
    method = getattr(embedding, "quant_method", None)
    is_head = embedding is getattr(model, "lm_head", None)
    if type(method) is UnquantizedEmbeddingMethod and hasattr(embedding, "cpu_linear") and not is_head:
        embedding.quant_method = LookupMethod()
        embedding.cpu_linear = nn.functional.linear


class LookupMethod(UnquantizedEmbeddingMethod):
    """An embedding's, with nothing to do after a load."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Leave the weight as it was loaded."""


def tied_heads(model: nn.Module) -> list[tuple[Any, Any]]:
    """(head, embedding) of every head that has its embedding's weight.

    vLLM's reload finds no tensor for such a head, and leaves its packed copy on CPUs as it was. It also ties a
    head whose tensor is in the folder and equals the embedding's.
    """
    layers: list[Any] = [each for each in model.modules() if isinstance(each, VocabParallelEmbedding)]
    heads = [each for each in layers if isinstance(each, ParallelLMHead)]
    embeddings = [each for each in layers if not isinstance(each, ParallelLMHead)]
    return [(head, each) for head in heads for each in embeddings if head.weight is each.weight]


def _pack_experts_again(model: nn.Module) -> None:
    """Let vLLM set its CPU kernels of experts up anew: on an update it would leave out to pack their weights."""
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod) and current_platform.is_cpu():
            method.moe_kernel = None


def parameters_of_folders(model: nn.Module) -> frozenset[str]:
    """The parameters that a folder's tensors are loaded into: none that were made of them afterwards."""
    names = {name for name, _ in model.named_parameters()}
    made_first = set[str]()
    for path, layer in model.named_modules():
        own = {*get_layerwise_info(layer).restore_metadata[0], *SKIP_TENSORS}
        made_first |= {f"{path}.{name}" if path else name for name in own}
    return frozenset(names & made_first)


def check_all_loaded(model: nn.Module, parameters: Collection[str], loaded: Collection[str] | None) -> None:
    """ValueError naming a parameter of the engine's model that got nothing of a weight set, or too little.

    What vLLM reports is compared with the model's parameters, and, of layers that are loaded tensor by tensor, the
    number of elements: a joined layer counts as reported once one of its tensors is there.
    """
    missing = sorted({*parameters} - {*loaded}) if loaded is not None else []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        total = info.load_numel_total or 0  # None where nothing is being loaded
        if 0 < info.load_numel < total and not isinstance(layer, VocabParallelEmbedding):  # it may be padded
            missing.append(name)
    if missing:
        raise ValueError(
            f"the weight set has nothing, or too little, for {missing[0]} of the engine's {type(model).__name__} "
            f"({len(missing)} of its parameters are missing)"
        )


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BucketTransferEngine)


class WorkerExtension:
    """Named as `worker_extension_cls`, so that every engine process imports this module and registers it."""
