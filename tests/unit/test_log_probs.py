"""The chunked log-prob head equals the naive one, and never holds more than a chunk of logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner.log_probs import HeadLimits, sampled_log_probs
from learner.student import LogProbHead, StudentModel
from tests.unit.test_learner_scene import GOLDEN_TOKEN_IDS, VOCAB_SIZE, tiny_qwen3

# Shapes: T positions, H hidden size, V vocabulary.
T, H, V = 37, 16, 50


def naive(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_ids_T: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    logits_TV = nn.functional.linear(hidden_TH, weight_VH, bias_V)[:, :vocab_size]
    log_probs_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).log_softmax(-1)
    entropy_T = -(log_probs_TV.exp() * log_probs_TV).sum(-1)
    return log_probs_TV.gather(1, target_ids_T[:, None])[:, 0], entropy_T


def inputs(dtype: torch.dtype, *, with_bias: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(T, H, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(V, H, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64)
    leaves = [hidden_TH, weight_VH, *([bias_V] if with_bias else [])]
    target_ids_T = torch.randint(0, V - 10, (T,), generator=generator)
    grad_T = torch.randn(T, generator=generator, dtype=torch.float64)
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], target_ids_T, grad_T


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("vocab_size", [V, V - 7])
@pytest.mark.parametrize(
    ("chunk_tokens", "kept_bytes"), [(1, 0), (1, 2**30), (8, 0), (8, 1500), (8, 2**30), (37, 1500), (100, 0)]
)
def test_values_entropy_and_gradients_equal_the_naive_ones_for_any_chunk_size(
    dtype: torch.dtype, limit: float, with_bias: bool, vocab_size: int, chunk_tokens: int, kept_bytes: int
) -> None:
    leaves, target_ids_T, grad_T = inputs(dtype, with_bias=with_bias)
    bias_V = leaves[2] if with_bias else None
    logp_T, entropy_T = sampled_log_probs(
        leaves[0],
        leaves[1],
        bias_V,
        target_ids_T,
        HeadLimits(vocab_size, chunk_tokens=chunk_tokens, kept_bytes=kept_bytes),
    )
    naive_logp_T, naive_entropy_T = naive(leaves[0], leaves[1], bias_V, target_ids_T, vocab_size)
    assert logp_T.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not entropy_T.requires_grad
    assert relative(logp_T, naive_logp_T) <= limit
    assert relative(entropy_T, naive_entropy_T) <= limit
    gradients = torch.autograd.grad(logp_T, leaves, grad_T.to(logp_T.dtype))
    naive_gradients = torch.autograd.grad(naive_logp_T, leaves, grad_T.to(logp_T.dtype))
    for gradient, naive_gradient in zip(gradients, naive_gradients, strict=True):
        assert gradient.dtype == dtype
        assert relative(gradient, naive_gradient) <= limit


def relative(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).detach().norm() / right.detach().double().norm())


def test_no_targets_give_zero_gradients_that_are_attached() -> None:
    leaves, _, _ = inputs(torch.float32, with_bias=True)
    hidden_0H = leaves[0][:0]
    no_ids = torch.zeros(0, dtype=torch.int64)
    logp_T, _ = sampled_log_probs(hidden_0H, leaves[1], leaves[2], no_ids, HeadLimits(V, chunk_tokens=8))
    for gradient in torch.autograd.grad(logp_T.sum(), leaves):
        assert not gradient.any()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.num_elements = max([self.num_elements, *(tensor.numel() for tensor in tensors)])
        return result


def test_no_tensor_is_larger_than_one_chunk_of_logits_or_the_weight() -> None:
    num_positions, hidden_size, num_ids, chunk_tokens = 512, 8, 1000, 32
    hidden = torch.randn(num_positions, hidden_size, requires_grad=True)
    weight = torch.randn(num_ids, hidden_size, requires_grad=True)
    target_ids = torch.randint(0, num_ids, (num_positions,))
    with LargestTensor() as chunked:
        logp_T, _ = sampled_log_probs(
            hidden, weight, None, target_ids, HeadLimits(num_ids, chunk_tokens=chunk_tokens)
        )
        logp_T.sum().backward()
    with LargestTensor() as whole:
        naive(hidden, weight, None, target_ids, num_ids)[0].sum().backward()
    assert chunked.num_elements == chunk_tokens * num_ids
    assert whole.num_elements == num_positions * num_ids


@pytest.mark.parametrize("tied", [True, False])
def test_student_model_equals_the_gradients_of_the_model_itself(tied: bool) -> None:
    causal_lm = tiny_qwen3(tied=tied)
    student = StudentModel(causal_lm, HeadLimits(VOCAB_SIZE, chunk_tokens=3))
    ids_N = torch.tensor(GOLDEN_TOKEN_IDS)
    positions_N = torch.arange(len(ids_N) - 1)
    parameters = dict(causal_lm.named_parameters())
    logp_N, _ = student(ids_N[:-1], positions_N, positions_N, ids_N[1:])
    gradients = torch.autograd.grad(logp_N.sum(), list(parameters.values()))
    logits_NV = causal_lm(input_ids=ids_N[None, :-1]).logits[0]
    naive_N = logits_NV.log_softmax(-1).gather(1, ids_N[1:, None])
    naive_gradients = torch.autograd.grad(naive_N.sum(), list(parameters.values()))
    for name, left, right in zip(parameters, gradients, naive_gradients, strict=True):
        assert relative(left, right) <= 1e-5, name


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_keep_their_hugging_face_names_and_tying(tied: bool) -> None:
    causal_lm = tiny_qwen3(tied=tied)
    names = [f"causal_lm.{name}" for name, _ in causal_lm.named_parameters()]
    student = StudentModel(causal_lm, HeadLimits(VOCAB_SIZE, chunk_tokens=3))
    assert [name for name, _ in student.named_parameters()] == names
    assert student.head.weight is causal_lm.lm_head.weight
    assert (student.head.weight is causal_lm.model.embed_tokens.weight) == tied


def test_check_head_accepts_a_plain_head_and_refuses_scaled_logits() -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE, chunk_tokens=3))
    golden = torch.tensor(GOLDEN_TOKEN_IDS)
    assert student.check_head(golden, limit=1e-5).shape == (len(golden) - 1,)
    student.causal_lm.lm_head.register_forward_hook(lambda _module, _inputs, logits: 30 * (logits / 30).tanh())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    with pytest.raises(ValueError, match="scales or caps its logits"):
        student.check_head(golden, limit=1e-4)


def test_padded_embedding_rows_get_no_probability() -> None:
    student = StudentModel(tiny_qwen3(num_rows=VOCAB_SIZE + 32), HeadLimits(VOCAB_SIZE, chunk_tokens=3))
    ids_N = torch.arange(VOCAB_SIZE)
    positions_N = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    logp_N, _ = student(ids_N[:1], positions_N[:1], positions_N, ids_N)
    torch.testing.assert_close(logp_N.exp().sum(), torch.tensor(1.0))


def test_a_model_without_output_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="no output embedding"):
        LogProbHead(None, HeadLimits(VOCAB_SIZE, chunk_tokens=3))
