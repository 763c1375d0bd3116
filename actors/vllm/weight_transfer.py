"""The worker side of a weight load: vLLM's weight-transfer registry reads published buckets from a file.

The file lies in shared memory, so engines of several processes (tensor parallel) read the same bytes and no RPC
carries tensors; an engine of one process may take them from this one (`actors/vllm/staging.py`). On CPUs some
models need no reload in general (`actors/vllm/packed_layers.py`). Importing this module registers the backend.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.vllm.packed_layers import PackedLayers, packed_layers
from actors.vllm.staging import buckets_at

BACKEND = "poweropd_file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update names its file."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One weight set: buckets back to back in the file `path`, or in this process under that name; tensors as
    (name, shape, bucket, byte offset in it)."""

    path: str
    dtype: str
    bucket_bytes: tuple[int, ...]
    tensors: list[tuple[str, tuple[int, ...], int, int]]


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads full Hugging Face tensors from a file into the engine's (fused, sharded) parameters."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    @cached_property
    def _packed(self) -> PackedLayers | None:
        return packed_layers(self.model)

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Put the layers into the state in which checkpoint tensors can be loaded."""
        _pack_no_lookup(self.model)
        if self._packed is None:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """Load one weight set; on CPUs there is no stream to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load the tensors of the file or the buckets."""
        model: Any = self.model
        tensors = _views(update_info)
        if self._packed is None:
            model.load_weights(tensors)
        else:
            self._packed.load(dict(tensors))

    def finish_weight_update(self) -> None:
        """Bring the loaded tensors into their serving layout."""
        if self._packed is None:
            finalize_layerwise_reload(self.model, self.model_config)
            _refresh_tied_head(self.model, self.model_config)

    def shutdown(self) -> None:
        """Holds nothing."""


def _views(update: FileUpdateInfo) -> list[tuple[str, torch.Tensor]]:
    buckets, dtype = buckets_at(update.path, update.bucket_bytes), getattr(torch, update.dtype)
    views = []
    for name, shape, bucket, offset in update.tensors:
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


def _refresh_tied_head(model: nn.Module, model_config: object) -> None:
    """Point a tied lm_head at the reloaded embedding again and rebuild its packed copy.

    vLLM's reload finds no `lm_head` tensor in a tied checkpoint and leaves the head's CPU-packed copy stale.
    """
    head, decoder = getattr(model, "lm_head", None), getattr(model, "model", None)
    embedding = getattr(decoder, "embed_tokens", None)
    is_tied = bool(getattr(getattr(model_config, "hf_text_config", None), "tie_word_embeddings", False))
    if is_tied and head is not None and embedding is not None and head is not embedding:
        head.weight = embedding.weight
        head.quant_method.process_weights_after_loading(head)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)


class WorkerExtension:
    """Named as `worker_extension_cls`, so that every engine process imports this module and registers it."""
