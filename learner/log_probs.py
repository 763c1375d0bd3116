"""Hidden states -> log-probs of the sampled tokens, and any other value of the student's distribution, without
the logits of the whole micro-batch.

The logits of a micro-batch, [N, V], are the largest tensor of a naive step: 8,192 tokens x 151,936 ids are 4.6
GiB in float32. Here they exist for a few positions at a time, in forward and, recomputed, in backward.

Shapes: N packed tokens, T response tokens, C positions of one chunk, H hidden size, V vocabulary, F facts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learner.weight_gradient import WeightGradient

PositionValue = Callable[[Tensor, Tensor], Tensor]
"""(logits_CV with gradient, positions_C into T) -> value_C: a function of each position's own logits. It is
called once in forward and again in backward, and must give the same value both times."""


class PositionFacts(Protocol):
    """Further values of each position's logits that carry no gradient: evaluated in forward alone."""

    @property
    def num_facts(self) -> int:
        """F."""
        ...

    def __call__(self, logits_CV: Tensor, positions_C: Tensor) -> Tensor:
        """Return facts_CF; the logits must be left as they are."""
        ...


@dataclass(frozen=True)
class HeadLimits:
    """How the head works through its positions."""

    vocab_size: int
    """Ids >= this one are cut off: rows that pad the embedding are no tokens."""
    chunk_tokens: int = 256
    """Positions per chunk: peak memory is a few tensors of `chunk_tokens` x `vocab_size`."""
    kept_bytes: int = 0
    """Up to so much of the softmax is kept from forward to backward, in the model's dtype: chunks that fit are
    not computed again."""


def sampled_log_probs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_ids_T: Tensor,
    limits: HeadLimits,
) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probs and the entropy (nats) of `softmax(hidden @ weight.T + bias)`.

    The product is taken in the model's dtype, the log-softmax in at least float32. Gradients reach hidden states,
    weight and bias through the log-probs; the entropy carries none.
    """
    return head_values(hidden_TH, weight_VH, bias_V, target_ids_T, limits=limits)[:2]


def position_values(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_ids_T: Tensor,
    position_value: PositionValue,
    limits: HeadLimits,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `sampled_log_probs` does, and value_T: `position_value` of the logits, chunk by chunk.

    Its graph exists for one chunk at a time: the chunk is evaluated again in backward, for the positions whose
    value has a gradient other than 0.
    """
    return head_values(hidden_TH, weight_VH, bias_V, target_ids_T, position_value, limits=limits)[:3]


def head_values(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_ids_T: Tensor,
    position_value: PositionValue | None = None,
    position_facts: PositionFacts | None = None,
    *,
    limits: HeadLimits,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `position_values` does, and facts_TF; 0 in place of what was not asked for."""
    if not torch.is_grad_enabled():
        limits = replace(limits, kept_bytes=0)
    callbacks = (position_value, position_facts)
    outputs: Any = _Positions.apply(hidden_TH, weight_VH, bias_V, target_ids_T, *callbacks, limits)
    return outputs


class _Positions(torch.autograd.Function):
    """Parameters must come in whole (not as slices): ZeRO-3 swaps their storage between the two passes."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_ids_T: Tensor,
        position_value: PositionValue | None,
        position_facts: PositionFacts | None,
        limits: HeadLimits,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
        logp_T, entropy_T, log_sum_T = (hidden_TH.new_empty(len(hidden_TH), dtype=dtype) for _ in range(3))
        value_T = hidden_TH.new_zeros(len(hidden_TH), dtype=dtype)
        num_facts = 0 if position_facts is None else position_facts.num_facts
        facts_TF = hidden_TH.new_zeros(len(hidden_TH), num_facts, dtype=dtype)
        kept = _KeptChunks(limits.kept_bytes if position_value is None and any(ctx.needs_input_grad) else 0)
        for part in _chunks(len(hidden_TH), limits.chunk_tokens):
            logits_CV = _logits(hidden_TH[part], weight_VH, bias_V, limits.vocab_size)
            if position_value is not None:
                value_T[part] = position_value(logits_CV, _positions(part, hidden_TH))
            if position_facts is not None:
                facts_TF[part] = position_facts(logits_CV, _positions(part, hidden_TH)).to(dtype)
            logp_T[part], entropy_T[part], log_sum_T[part], p_CV = _read_chunk(logits_CV, target_ids_T[part])
            kept.offer(part.start, p_CV, hidden_TH.dtype)
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T)
        ctx.position_value, ctx.limits, ctx.kept = position_value, limits, kept
        ctx.mark_non_differentiable(entropy_T, facts_TF, *([] if position_value else [value_T]))
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T, value_T, facts_TF

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logp_T: Tensor | None, _: None, grad_value_T: Tensor | None, __: None
    ) -> tuple[Tensor | None, ...]:
        """Parameter gradients add up in at least float32."""
        hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T = ctx.saved_tensors
        vocab_size, dtype, kept = ctx.limits.vocab_size, log_sum_T.dtype, ctx.kept.chunks
        grad_hidden_TH = torch.empty_like(hidden_TH)
        weight_gradient = WeightGradient(weight_VH, vocab_size=vocab_size, dtype=dtype)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=dtype)
        for part in _chunks(len(hidden_TH), ctx.limits.chunk_tokens):
            if part.start in kept and grad_logp_T is not None:
                grad_CV = _gradient_of_softmax(kept.pop(part.start), target_ids_T[part], grad_logp_T[part])
            else:
                logits_CV = _logits(hidden_TH[part], weight_VH, bias_V, vocab_size)
                value_CV = None
                if grad_value_T is not None:
                    positions_C = _positions(part, hidden_TH)
                    value_CV = _gradient_of_value(ctx.position_value, logits_CV, positions_C, grad_value_T[part])
                if grad_logp_T is not None:
                    p_CV = logits_CV.sub_(log_sum_T[part, None]).exp_()
                    grad_CV = _gradient_of_softmax(p_CV, target_ids_T[part], grad_logp_T[part])
                    grad_CV = grad_CV if value_CV is None else grad_CV.add_(value_CV)
                else:
                    assert value_CV is not None, "neither output has a gradient"
                    grad_CV = value_CV
            if grad_bias_V is not None:
                grad_bias_V[:vocab_size] += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(hidden_TH.dtype)
            grad_hidden_TH[part] = grad_CV @ weight_VH[:vocab_size]
            weight_gradient.add(grad_CV, hidden_TH[part])
        grad_bias_V = None if grad_bias_V is None else grad_bias_V.to(weight_VH.dtype)
        return grad_hidden_TH, weight_gradient.result(), grad_bias_V, *[None] * 4


class _KeptChunks:
    """The softmax of some chunks, from forward to backward."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self.chunks: dict[int, Tensor] = {}

    def offer(self, start: int, p_CV: Tensor, dtype: torch.dtype) -> None:
        """Keep the chunk that begins at this position, if it still fits."""
        num_bytes = p_CV.numel() * dtype.itemsize
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self.chunks[start] = p_CV.to(dtype)


def _read_chunk(logits_CV: Tensor, target_ids_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the targets' log-probs, the entropies, the logsumexp and the softmax; overwrites the logits."""
    highest_C = logits_CV.amax(dim=-1)
    logits_CV.sub_(highest_C[:, None])
    p_CV = logits_CV.exp()
    sum_C = p_CV.sum(dim=-1)
    log_sum_C = sum_C.log()
    p_CV.div_(sum_C[:, None])
    entropy_C = log_sum_C - torch.linalg.vecdot(p_CV, logits_CV)
    logp_C = logits_CV.gather(1, target_ids_C[:, None])[:, 0] - log_sum_C
    return logp_C, entropy_C, log_sum_C + highest_C, p_CV


def _gradient_of_softmax(p_CV: Tensor, target_ids_C: Tensor, grad_C: Tensor) -> Tensor:
    """Use d logp / d logits = onehot(target) - p; overwrites the softmax."""
    grad_C = grad_C.to(p_CV.dtype)
    return p_CV.mul_(-grad_C[:, None]).scatter_add_(1, target_ids_C[:, None], grad_C[:, None])


def _gradient_of_value(
    position_value: PositionValue, logits_CV: Tensor, positions_C: Tensor, grad_C: Tensor
) -> Tensor:
    """Evaluate the chunk again with a graph; positions without gradient stay out, where it may not be finite."""
    used = grad_C.nonzero()[:, 0]
    grad_CV = torch.zeros_like(logits_CV)
    if used.numel():
        with torch.enable_grad():
            leaf_CV = logits_CV[used].requires_grad_()
            value_C = position_value(leaf_CV, positions_C[used])
            (used_CV,) = torch.autograd.grad(value_C, leaf_CV, grad_C[used].to(value_C.dtype))
        grad_CV[used] = used_CV
    return grad_CV


def _positions(part: slice, like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)[part]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, vocab_size: int) -> Tensor:
    bias = None if bias_V is None else bias_V[:vocab_size]
    logits_CV = nn.functional.linear(hidden_CH, weight_VH[:vocab_size], bias)
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))


def _chunks(num_positions: int, chunk_tokens: int) -> Iterator[slice]:
    for start in range(0, num_positions, chunk_tokens):
        yield slice(start, start + chunk_tokens)
