"""Hidden states -> log-probs of the sampled tokens, and any other value of the student's distribution, without
the logits of the whole micro-batch.

The logits of a micro-batch, [T, V], are the largest tensor of a naive step: 8,192 tokens x 151,936 ids are 4.6
GiB in float32. Here they exist for a chunk of positions at a time, in forward and, recomputed, in backward.

    positions  |      chunk      |      chunk      |   chunk   |
    logits     | block | block | ...

A chunk's logits are one product in the model's dtype. They are read in float32 a block at a time: on CPUs so few
positions that a block stays in the cache, elsewhere enough of them to keep the device busy.

Shapes: T response tokens, C positions of one chunk, S positions of one block of it, H hidden size, V vocabulary, F
facts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from learner.head_chunk import BLOCK_ELEMENTS, CACHED_BLOCK_ELEMENTS, chunk_positions
from learner.weight_gradient import WeightGradient

PositionValue = Callable[[Tensor, Tensor], Tensor]
"""(logits_SV with gradient, positions_S into T) -> value_S: a function of each position's own logits. It is
called once in forward and again in backward, and must give the same value both times."""


class PositionFacts(Protocol):
    """Further values of each position's logits that carry no gradient: evaluated in forward alone."""

    @property
    def num_facts(self) -> int:
        """F."""
        ...

    def __call__(self, logits_SV: Tensor, positions_S: Tensor, /) -> Tensor:
        """Return facts_SF; the logits must be left as they are."""
        ...


@dataclass(frozen=True)
class HeadLimits:
    """How the head works through its positions."""

    vocab_size: int
    """Ids >= this one are cut off: rows that pad the embedding are no tokens."""
    chunk_tokens: int | Literal["auto"] = "auto"
    """Positions per chunk: peak memory is `chunk_tokens` x `vocab_size` in the model's dtype. `auto`: as many as
    have about `learner.head_chunk.CHUNK_ELEMENTS` logits."""
    kept_bytes: int = 0
    """The logits of one chunk are kept from forward to backward, as backward needs that memory in any case;
    so are those of others, up to so many bytes. The rest is computed again."""

    def chunks(self, num_positions: int) -> list[slice]:
        """Return the fewest chunks that keep to the limit, as even as they can be."""
        limit = chunk_positions(self.chunk_tokens, vocab_size=self.vocab_size)
        count = -(-num_positions // limit)
        size = -(-num_positions // max(count, 1))
        return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size or 1)]


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
    """Return what `sampled_log_probs` does, value_T and facts_TF; 0 in place of what was not asked for.

    `position_value` is taken block by block. Its graph exists for one block at a time: the block is evaluated
    again in backward, for the positions whose value has a gradient other than 0.
    """
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
        chunks, vocab_size = limits.chunks(len(hidden_TH)), limits.vocab_size
        logits = ChunkLogits(chunks, vocab_size=vocab_size, like=hidden_TH, kept_bytes=limits.kept_bytes)
        blocks = _blocks(vocab_size, log_sum_T, is_cached=position_value is None and position_facts is None)
        for part in chunks:
            logits_CV = _write_logits(hidden_TH[part], weight_VH, bias_V, logits.buffer(part))
            for block in blocks.of(len(logits_CV)):
                logits_SV, at = blocks.copy(logits_CV[block]), _shifted(block, part.start)
                if position_value is not None:
                    value_T[at] = position_value(logits_SV, _positions(at, hidden_TH))
                if position_facts is not None:
                    facts_TF[at] = position_facts(logits_SV, _positions(at, hidden_TH)).to(dtype)
                spare_SV = blocks.spare(len(logits_SV))
                logp_T[at], entropy_T[at], log_sum_T[at] = _read_block(logits_SV, target_ids_T[at], spare_SV)
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T)
        ctx.position_value, ctx.limits, ctx.logits = position_value, limits, logits
        ctx.mark_non_differentiable(entropy_T, facts_TF, *([] if position_value else [value_T]))
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T, value_T, facts_TF

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logp_T: Tensor | None, _: None, grad_value_T: Tensor | None, __: None
    ) -> tuple[Tensor | None, ...]:
        """Parameter gradients add up in at least float32."""
        hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T = ctx.saved_tensors
        vocab_size, dtype = ctx.limits.vocab_size, log_sum_T.dtype
        num_chunks = len(ctx.limits.chunks(len(hidden_TH)))
        grad_hidden_TH = torch.empty_like(hidden_TH, memory_format=torch.contiguous_format)
        weight_gradient = WeightGradient(weight_VH, vocab_size=vocab_size, dtype=dtype, num_chunks=num_chunks)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=dtype)
        blocks = _blocks(vocab_size, log_sum_T, is_cached=grad_value_T is None)
        for part, logits_CV, is_written in ctx.logits.remaining():
            if not is_written:
                _write_logits(hidden_TH[part], weight_VH, bias_V, logits_CV)
            for block in blocks.of(len(logits_CV)):
                at, block_SV = _shifted(block, part.start), blocks.copy(logits_CV[block])
                value_SV = None
                if grad_value_T is not None:
                    positions_S = _positions(at, hidden_TH)
                    value_SV = _gradient_of_value(ctx.position_value, block_SV, positions_S, grad_value_T[at])
                if grad_logp_T is not None:
                    block_SV.sub_(log_sum_T[at, None]).exp_()
                    _gradient_of_softmax(block_SV, target_ids_T[at], grad_logp_T[at])
                    block_SV = block_SV if value_SV is None else block_SV.add_(value_SV)
                else:
                    assert value_SV is not None, "neither output has a gradient"
                    block_SV = value_SV
                if grad_bias_V is not None:
                    grad_bias_V[:vocab_size] += block_SV.sum(dim=0)
                logits_CV[block] = block_SV
            torch.mm(logits_CV, weight_VH[:vocab_size], out=grad_hidden_TH[part])
            weight_gradient.add(logits_CV, hidden_TH[part])
            del logits_CV  # before the next one is made
        grad_bias_V = None if grad_bias_V is None else grad_bias_V.to(weight_VH.dtype)
        return grad_hidden_TH, weight_gradient.result(), grad_bias_V, *[None] * 4


class ChunkLogits:
    """Memory for the logits of all chunks in turn, and those that stay in it until backward."""

    def __init__(self, chunks: list[slice], *, vocab_size: int, like: Tensor, kept_bytes: int) -> None:
        """Take no memory yet; tensors will be of the device and dtype of `like`."""
        self._vocab_size, self._like, self._bytes_left = vocab_size, like, kept_bytes
        self._num_positions = max((part.stop - part.start for part in chunks), default=0)
        self._shared_CV: Tensor | None = None
        self._in_shared: int | None = None
        self._kept: dict[int, Tensor] = {}
        self._chunks = chunks

    def buffer(self, part: slice) -> Tensor:
        """Return logits_CV to be written: its own where they may be kept, else the ones that all others use."""
        num_positions = part.stop - part.start
        num_bytes = num_positions * self._vocab_size * self._like.element_size()
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._kept[part.start] = self._like.new_empty(num_positions, self._vocab_size)
            return self._kept[part.start]
        if self._shared_CV is None:
            self._shared_CV = self._like.new_empty(self._num_positions, self._vocab_size)
        self._in_shared = part.start
        return self._shared_CV[:num_positions]

    def remaining(self) -> Iterator[tuple[slice, Tensor, bool]]:
        """Yield (chunk, logits_CV to be overwritten, whether they hold its logits), and free what was kept."""
        self._bytes_left = 0
        shared, self._in_shared = self._in_shared, None
        for part in sorted(self._chunks, key=lambda part: part.start != shared):
            if part.start == shared:
                assert self._shared_CV is not None, "a chunk cannot be in memory that was not taken"
                yield part, self._shared_CV[: part.stop - part.start], True
            elif part.start in self._kept:
                yield part, self._kept.pop(part.start), True
            else:
                yield part, self.buffer(part), False
        self._shared_CV = self._in_shared = None


class Blocks:
    """Float copies of logits, one block of positions at a time, always in the same memory."""

    def __init__(self, *, vocab_size: int, dtype: torch.dtype, device: torch.device, is_cached: bool) -> None:
        """Blocks have `dtype`; `is_cached` makes them small where there is a cache to stay in."""
        elements = CACHED_BLOCK_ELEMENTS if is_cached and device.type == "cpu" else BLOCK_ELEMENTS
        self._num_positions = max(elements // vocab_size, 1)
        self._vocab_size, self._dtype, self._device = vocab_size, dtype, device
        self._copy_SV: Tensor | None = None
        self._spare_SV: Tensor | None = None

    def of(self, num_positions: int) -> Iterator[slice]:
        """Yield the blocks of a chunk."""
        for start in range(0, num_positions, self._num_positions):
            yield slice(start, min(start + self._num_positions, num_positions))

    def copy(self, logits_SV: Tensor) -> Tensor:
        """Return a float copy, which the next call overwrites."""
        if self._copy_SV is None or len(self._copy_SV) < len(logits_SV):
            self._copy_SV = self._new(len(logits_SV))
        return self._copy_SV[: len(logits_SV)].copy_(logits_SV)

    def spare(self, num_positions: int) -> Tensor:
        """Return memory for another block, not initialised, which the next call returns again."""
        if self._spare_SV is None or len(self._spare_SV) < num_positions:
            self._spare_SV = self._new(num_positions)
        return self._spare_SV[:num_positions]

    def _new(self, num_positions: int) -> Tensor:
        return torch.empty(num_positions, self._vocab_size, dtype=self._dtype, device=self._device)


def _read_block(logits_SV: Tensor, target_ids_S: Tensor, spare_SV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets' log-probs, the entropies and the logsumexp; overwrites both blocks."""
    highest_S = logits_SV.amax(dim=-1)
    logits_SV.sub_(highest_S[:, None])
    torch.exp(logits_SV, out=spare_SV)
    sum_S = spare_SV.sum(dim=-1)
    log_sum_S = sum_S.log()
    logp_S = logits_SV.gather(1, target_ids_S[:, None])[:, 0] - log_sum_S
    entropy_S = log_sum_S - logits_SV.mul_(spare_SV).sum(dim=-1) / sum_S
    return logp_S, entropy_S, log_sum_S + highest_S


def _gradient_of_softmax(p_SV: Tensor, target_ids_S: Tensor, grad_S: Tensor) -> None:
    """Use d logp / d logits = onehot(target) - p; overwrites the softmax."""
    grad_S = grad_S.to(p_SV.dtype)
    p_SV.mul_(-grad_S[:, None]).scatter_add_(1, target_ids_S[:, None], grad_S[:, None])


def _gradient_of_value(
    position_value: PositionValue, logits_SV: Tensor, positions_S: Tensor, grad_S: Tensor
) -> Tensor:
    """Evaluate the block again with a graph; positions without gradient stay out, where it may not be finite."""
    used = grad_S.nonzero()[:, 0]
    grad_SV = torch.zeros_like(logits_SV)
    if used.numel():
        with torch.enable_grad():
            leaf_SV = logits_SV[used].requires_grad_()
            value_S = position_value(leaf_SV, positions_S[used])
            (used_SV,) = torch.autograd.grad(value_S, leaf_SV, grad_S[used].to(value_S.dtype))
        grad_SV[used] = used_SV
    return grad_SV


def _blocks(vocab_size: int, like: Tensor, *, is_cached: bool) -> Blocks:
    return Blocks(vocab_size=vocab_size, dtype=like.dtype, device=like.device, is_cached=is_cached)


def _shifted(part: slice, start: int) -> slice:
    return slice(start + part.start, start + part.stop)


def _positions(part: slice, like: Tensor) -> Tensor:
    return torch.arange(part.start, part.stop, device=like.device)


def _write_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, logits_CV: Tensor) -> Tensor:
    weight_HV = weight_VH[: logits_CV.shape[1]].t()
    if bias_V is None:
        return torch.mm(hidden_CH, weight_HV, out=logits_CV)
    return torch.addmm(bias_V[: logits_CV.shape[1]], hidden_CH, weight_HV, out=logits_CV)
