"""Published buckets hold every weight once, under its Hugging Face name, in the engine's dtype."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from cluster.weights import WeightManifest, check_buckets
from learner.publisher import publish_weights
from tests.unit.test_learner_scene import GOLDEN_TOKEN_IDS, tiny_qwen3


def publish(model: torch.nn.Module, *, dtype: str, max_bytes: int) -> tuple[list[np.ndarray], WeightManifest]:
    *buckets, manifest = publish_weights(
        model,
        gathered=lambda parameters: nullcontext(),
        is_first_rank=True,
        incarnation=1,
        version=2,
        dtype=dtype,
        golden_token_ids=GOLDEN_TOKEN_IDS,
        golden_log_probs=[-1.0] * (len(GOLDEN_TOKEN_IDS) - 1),
        max_bytes=max_bytes,
    )
    assert isinstance(manifest, WeightManifest)
    return buckets, manifest  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**28])
@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_float32_model_is_published_in_the_engine_dtype_for_any_bucket_size(
    name: str, dtype: torch.dtype, max_bytes: int
) -> None:
    model = tiny_qwen3(tied=False)
    buckets, manifest = publish(model, dtype=name, max_bytes=max_bytes)
    check_buckets(manifest, buckets)
    parameters = dict(model.named_parameters())
    assert [spec.name for spec in manifest.tensors] == list(parameters)
    for spec in manifest.tensors:
        stop = spec.offset + spec.num_elements * dtype.itemsize
        values = torch.from_numpy(buckets[spec.bucket][spec.offset : stop].copy()).view(dtype)
        assert torch.equal(values.view(spec.shape), parameters[spec.name].to(dtype))


def test_a_tied_output_embedding_is_sent_once() -> None:
    _, manifest = publish(tiny_qwen3(tied=True), dtype="float32", max_bytes=2**28)
    names = [spec.name for spec in manifest.tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_another_rank_yields_nothing_but_joins_every_gather() -> None:
    gathered: list[int] = []

    def gather(parameters: object) -> nullcontext[None]:
        gathered.append(len(list(parameters)))  # pyright: ignore[reportArgumentType, reportCallIssue]
        return nullcontext()

    model = tiny_qwen3()
    parts = publish_weights(
        model,
        gathered=gather,
        is_first_rank=False,
        incarnation=1,
        version=2,
        dtype="float32",
        golden_token_ids=GOLDEN_TOKEN_IDS,
        golden_log_probs=[],
        max_bytes=20_000,
    )
    assert list(parts) == []
    assert len(gathered) > 1
    assert sum(gathered) == len(list(model.parameters()))
