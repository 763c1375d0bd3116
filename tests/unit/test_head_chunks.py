"""The log-prob head computes logits again only where they were not kept, and never takes kept ones for others."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.head_chunk import CHUNK_ELEMENTS, MIN_CHUNK_TOKENS, chunk_positions
from learner.log_probs import HeadLimits, sampled_log_probs

T, H, V = 40, 8, 50
CHUNK_BYTES = 10 * V * 4


class LogitProducts(TorchDispatchMode):
    """Counts the matrix products whose result has the width of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_product = func.overloadpacket is torch.ops.aten.mm
        self.num += is_product and isinstance(result, Tensor) and result.shape[-1] == V
        return result


def leaves() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TH, weight_VH = torch.randn(T, H, generator=generator), torch.randn(V, H, generator=generator)
    return [hidden_TH.requires_grad_(), weight_VH.requires_grad_()], torch.randint(V, (T,), generator=generator)


@pytest.mark.parametrize(("num_kept", "again"), [(0, 3), (1, 2), (2, 1), (3, 0), (9, 0)])
def test_only_what_was_not_kept_is_computed_again(num_kept: int, again: int) -> None:
    (hidden_TH, weight_VH), ids_T = leaves()
    limits = HeadLimits(V, chunk_tokens=10, kept_bytes=num_kept * CHUNK_BYTES)
    with LogitProducts() as products:
        logp_T, _ = sampled_log_probs(hidden_TH, weight_VH, None, ids_T, limits)
        assert products.num == 4
        logp_T.sum().backward()
    assert products.num == 4 + again


@pytest.mark.parametrize("num_kept", [0, 2, 9])
def test_a_second_backward_through_the_same_graph_gives_the_same(num_kept: int) -> None:
    (hidden_TH, weight_VH), ids_T = leaves()
    limits = HeadLimits(V, chunk_tokens=10, kept_bytes=num_kept * CHUNK_BYTES)
    logp_T, _ = sampled_log_probs(hidden_TH, weight_VH, None, ids_T, limits)
    first = torch.autograd.grad(logp_T.sum(), [hidden_TH, weight_VH], retain_graph=True)
    second = torch.autograd.grad(logp_T.sum(), [hidden_TH, weight_VH])
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_positions", [0, 1, 9, 10, 11, 40, 41])
def test_chunks_cover_every_position_once_and_keep_to_the_limit(num_positions: int) -> None:
    chunks = HeadLimits(V, chunk_tokens=10).chunks(num_positions)
    assert [p for part in chunks for p in range(part.start, part.stop)] == list(range(num_positions))
    assert len(chunks) == -(-num_positions // 10)
    assert max((part.stop - part.start for part in chunks), default=0) <= 10


def test_chunks_of_small_vocabularies_have_more_positions() -> None:
    assert chunk_positions("auto", vocab_size=151_936) == 883
    assert chunk_positions("auto", vocab_size=4096) == CHUNK_ELEMENTS // 4096
    assert chunk_positions("auto", vocab_size=2**30) == MIN_CHUNK_TOKENS
    assert chunk_positions(7, vocab_size=4096) == 7
