"""Weights -> buckets of bytes: gathers one bucket at a time and describes them all in a manifest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from learner.bucket_memory import BucketMemory
from learner.weight_history import WeightHistory
from transport.checksums import checksum
from transport.weights import BUCKET_BYTES, ITEM_BYTES, TensorSpec, WeightManifest, bucket_sizes, plan_buckets

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Gather = Callable[[Iterable[nn.Parameter]], AbstractContextManager[None]]


def publish_weights(
    causal_lm: nn.Module,
    *,
    gathered: Gather,
    is_first_rank: bool,
    incarnation: int,
    version: int,
    dtype: str,
    golden_token_ids: Sequence[int],
    golden_log_probs: Sequence[float],
    max_bytes: int = BUCKET_BYTES,
    history: WeightHistory | None = None,
    memory: BucketMemory | None = None,
) -> Iterator[np.ndarray | WeightManifest]:
    """Yield the weights in `dtype` as uint8 buckets, then the manifest; on other ranks yield nothing.

    Every rank must exhaust the generator, since with ZeRO-3 each bucket is gathered by all of them. Names are
    those of the Hugging Face model; a tied output embedding is the input embedding and is sent once. At most
    one bucket of full parameters exists at a time, unless `history` keeps them: with it, every bucket of a version
    that has a base is followed by its coded difference. A bucket must not be written to: its checksum is computed
    while the receiver copies it.
    """
    parameters = dict(causal_lm.named_parameters())
    specs = plan_buckets(
        ((name, full_shape(parameter)) for name, parameter in parameters.items()),
        dtype=dtype,
        max_bytes=max_bytes,
    )
    memory = BucketMemory() if memory is None else memory
    sizes, item_bytes = bucket_sizes(specs, dtype=dtype), ITEM_BYTES[dtype]
    checksums: list[int] = []
    difference_bytes: list[int] = []
    base_version = history.begin(incarnation, version, sizes) if history is not None and is_first_rank else None
    with ThreadPoolExecutor(max_workers=1) as beside:
        for index, size in enumerate(sizes):
            in_bucket = [spec for spec in specs if spec.bucket == index]
            with gathered([parameters[spec.name] for spec in in_bucket]):
                if not is_first_rank:
                    continue
                bucket = _fill(memory.take(size), in_bucket, parameters, TORCH_DTYPES[dtype])
            pending = beside.submit(checksum, bucket)
            yield bucket
            checksums.append(pending.result())
            difference = None if history is None else history.remember(index, bucket, item_bytes=item_bytes)
            del bucket, pending
            if difference is not None:
                difference_bytes.append(difference.nbytes)
                yield difference
    if is_first_rank:
        yield WeightManifest(
            incarnation=incarnation,
            version=version,
            dtype=dtype,
            tensors=specs,
            bucket_bytes=sizes,
            checksums=tuple(checksums),
            golden_token_ids=tuple(golden_token_ids),
            golden_log_probs=tuple(golden_log_probs),
            base_version=base_version,
            difference_bytes=tuple(difference_bytes),
        )


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, also where ZeRO-3 has taken its elements away."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _fill(
    filled: np.ndarray, specs: Sequence[TensorSpec], parameters: dict[str, nn.Parameter], dtype: torch.dtype
) -> np.ndarray:
    bucket = torch.from_numpy(filled)
    for spec in specs:
        values = parameters[spec.name].detach()
        there = bucket[spec.offset : spec.offset + values.numel() * dtype.itemsize]
        there.view(dtype).view(values.shape).copy_(values)
    return filled
