"""The worker side of a weight load: a backend of vLLM's weight-transfer registry that reads published buckets.

They are in a shared-memory file, so that all processes of an engine (tensor parallel) read the same bytes and no
RPC carries tensors, or in this process, for an engine of one process (`actors/vllm/staging.py`). On CPUs, some
models need no full reload (`actors/vllm/packed_layers.py`). Importing this module registers the backend.
"""

from collections.abc import Sequence
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
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.vllm.packed_layers import PackedLayers, packed_layers
from actors.vllm.staging import bucket_tensors

BACKEND = "poweropd_buckets"


@dataclass
class BucketInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says where its buckets are."""


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):
    """One weight set: buckets back to back in the file `path`, or `buckets` of this process.

    Tensors are (name, shape, bucket, byte offset in it).
    """

    path: str | None
    buckets: Sequence[np.ndarray]
    dtype: str
    bucket_bytes: tuple[int, ...]
    tensors: list[tuple[str, tuple[int, ...], int, int]]


class BucketTransferEngine(WeightTransferEngine[BucketInitInfo, BucketUpdateInfo]):
    """Loads full Hugging Face tensors from buckets into the engine's (fused, sharded) parameters."""

    init_info_cls = BucketInitInfo
    update_info_cls = BucketUpdateInfo

    @cached_property
    def _packed(self) -> PackedLayers | None:
        return packed_layers(self.model)

    def init_transfer_engine(self, init_info: BucketInitInfo) -> None:
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

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        """Load the tensors in the buckets."""
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


def _views(update: BucketUpdateInfo) -> list[tuple[str, torch.Tensor]]:
    buckets = bucket_tensors(update.path, update.buckets, update.bucket_bytes)
    dtype = getattr(torch, update.dtype)
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
    WeightTransferEngineFactory.register_engine(BACKEND, BucketTransferEngine)


class WorkerExtension:
    """Named as `worker_extension_cls`, so that every engine process imports this module and registers it."""
