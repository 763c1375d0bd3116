"""Gradients that DeepSpeed would convert as a whole are converted block by block, to the same numbers."""

import pytest
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from learner import engine_memory
from learner.engine_memory import add_in_blocks, convert_in_blocks


class Optimizer:
    """Takes norms as a ZeRO optimizer does, and remembers the largest gradient it was given."""

    largest = 0

    def get_grad_norm_direct(
        self, gradients: list[Tensor], params: list[nn.Parameter], norm_type: float
    ) -> Tensor:
        """The norm of those whose parameter counts."""
        self.largest = max(len(gradient) for gradient in gradients)
        counted = [g.double().norm() for g, p in zip(gradients, params, strict=True) if p.requires_grad]
        return torch.stack(counted).pow(norm_type).sum().pow(1 / norm_type)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_memory, "CACHED_BLOCK_ELEMENTS", 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adding_in_blocks_gives_the_sum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    output, source = torch.randn(30), torch.randn(30).to(dtype)
    expected = output + source.float()
    add_in_blocks(output, source)
    assert torch.equal(output, expected)


def test_a_norm_of_blocks_is_that_of_whole_gradients_and_blocks_keep_their_parameter() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5, 8), torch.randn(8, 3).t(), torch.randn(4)]
    params = [nn.Parameter(torch.zeros(1), requires_grad=is_counted) for is_counted in (True, False, True)]
    padding = torch.full((9,), 100.0)
    padding._zero_padding = True  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = Optimizer()
    convert_in_blocks(optimizer)
    norm = optimizer.get_grad_norm_direct([gradients[0], padding, *gradients[1:]], params, 2)
    expected = torch.cat([gradients[0].flatten(), gradients[2]]).norm()
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)
    assert optimizer.largest == 7


def test_an_optimizer_without_these_passes_is_left_as_it_is() -> None:
    plain = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    before = dict(vars(plain))
    convert_in_blocks(plain)
    assert vars(plain) == before


def test_deepspeed_has_the_passes_that_are_replaced() -> None:
    assert callable(DeepSpeedZeroOptimizer._add_to_grad_partition_buffer)
    assert callable(DeepSpeedZeroOptimizer.get_grad_norm_direct)
    assert callable(DeepSpeedZeroOptimizer_Stage3.get_grad_norm_direct)
