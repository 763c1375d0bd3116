"""Hidden states -> log-probs of the sampled tokens, and any other value of the student's distribution, without
the logits of the whole micro-batch.

The logits of a micro-batch, [N, V], are the largest tensor of a naive step: 8,192 tokens x 151,936 ids are 4.6
GiB in float32. Here they exist for a few positions at a time, in forward and, recomputed, in backward.

Shapes: N packed tokens, T response tokens, C positions of one chunk, H hidden size, V vocabulary, F facts.
"""

from collections.abc import Callable, Iterator
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


class StudentModel(nn.Module):
    """A Hugging Face causal language model that returns log-probs of given tokens instead of logits."""

    def __init__(self, causal_lm: nn.Module, *, chunk_tokens: int, vocab_size: int) -> None:
        """Wrap `causal_lm`; its parameters keep their names under the prefix `causal_lm.`."""
        super().__init__()
        self.causal_lm = causal_lm
        self.head = LogProbHead(
            causal_lm.get_output_embeddings(),  # pyright: ignore[reportCallIssue]
            chunk_tokens=chunk_tokens,
            vocab_size=vocab_size,
        )

    def forward(
        self,
        input_ids_N: Tensor,
        position_ids_N: Tensor,
        source_positions_T: Tensor,
        target_ids_T: Tensor,
        position_value: PositionValue | None = None,
        position_facts: PositionFacts | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (logp_T with gradient, entropy_T without) of the targets at the source positions.

        With `position_value` there is a third: value_T with gradient. With `position_facts` there is a fourth,
        facts_TF, and the third is 0 if it was not asked for.
        """
        decoder = self.causal_lm.get_decoder()  # pyright: ignore[reportCallIssue]
        hidden_1NH = decoder(
            input_ids=input_ids_N[None], position_ids=position_ids_N[None], use_cache=False
        ).last_hidden_state
        return self.head(hidden_1NH[0, source_positions_T], target_ids_T, position_value, position_facts)

    def check_head(self, token_ids_N: Tensor, *, limit: float) -> Tensor:
        """Return log-probs of `token_ids_N[1:]`; ValueError if the model's own logits give others.

        They differ for models that do more than one matrix product between hidden states and logits
        (soft-capping, scaling): training through this head would then follow a wrong policy.
        """
        positions_N = torch.arange(len(token_ids_N), device=token_ids_N.device)
        logp_N = self(token_ids_N[:-1], positions_N[:-1], positions_N[:-1], token_ids_N[1:])[0]
        logits_1NV = self.causal_lm(
            input_ids=token_ids_N[None, :-1], position_ids=positions_N[None, :-1], use_cache=False
        ).logits
        own_NV = logits_1NV[0, :, : self.head.vocab_size].float().log_softmax(dim=-1)
        own_N = own_NV.gather(1, token_ids_N[1:, None])[:, 0]
        difference = (own_N - logp_N).abs().mean().item()
        if not difference <= limit:
            raise ValueError(
                f"the chunked log-prob head differs from {type(self.causal_lm).__name__}'s own logits by "
                f"{difference:.3g} on average, limit {limit}: this model scales or caps its logits, which the "
                "learner does not support"
            )
        return logp_N


class LogProbHead(nn.Module):
    """The output embedding as a log-prob layer: owns the same Parameters, so tied weights stay tied.

    They are registered here as well so that ZeRO-3, which gathers each module's own parameters around its
    forward and backward, gathers them around this one.
    """

    def __init__(self, output_embeddings: nn.Module | None, *, chunk_tokens: int, vocab_size: int) -> None:
        """Share the weight [V, H] and bias of `output_embeddings`; ids >= `vocab_size` are cut off."""
        super().__init__()
        if output_embeddings is None or not hasattr(output_embeddings, "weight"):
            raise ValueError("the student has no output embedding (lm_head) to take log-probs from")
        self.weight: nn.Parameter = output_embeddings.weight  # pyright: ignore[reportAttributeAccessIssue]
        self.bias: nn.Parameter | None = getattr(output_embeddings, "bias", None)
        self.chunk_tokens = chunk_tokens
        self.vocab_size = vocab_size

    def forward(
        self,
        hidden_TH: Tensor,
        target_ids_T: Tensor,
        position_value: PositionValue | None = None,
        position_facts: PositionFacts | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (logp_T with gradient, entropy_T without, value_T, facts_TF), the last two if asked for."""
        callbacks = (position_value, position_facts)
        outputs: Any = _Positions.apply(
            hidden_TH, self.weight, self.bias, target_ids_T, *callbacks, self.chunk_tokens, self.vocab_size
        )
        return outputs if position_facts is not None else outputs[: 2 if position_value is None else 3]


def sampled_log_probs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_ids_T: Tensor,
    *,
    chunk_tokens: int,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probs and the entropy (nats) of `softmax(hidden @ weight.T + bias)`.

    The product is taken in the model's dtype, the log-softmax in at least float32, over the first `vocab_size`
    ids: rows that pad the embedding are no tokens. Gradients reach hidden states, weight and bias through the
    log-probs; the entropy carries none. Peak memory is a few tensors of `chunk_tokens` x V.
    """
    outputs: Any = _Positions.apply(
        hidden_TH, weight_VH, bias_V, target_ids_T, None, None, chunk_tokens, vocab_size
    )
    return outputs[:2]


def position_values(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_ids_T: Tensor,
    position_value: PositionValue,
    *,
    chunk_tokens: int,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `sampled_log_probs` does, and value_T: `position_value` of the logits, chunk by chunk.

    Its graph exists for one chunk at a time: the chunk is evaluated again in backward, for the positions whose
    value has a gradient other than 0.
    """
    outputs: Any = _Positions.apply(
        hidden_TH, weight_VH, bias_V, target_ids_T, position_value, None, chunk_tokens, vocab_size
    )
    return outputs[:3]


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
        chunk_tokens: int,
        vocab_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
        logp_T, entropy_T, log_sum_T = (hidden_TH.new_empty(len(hidden_TH), dtype=dtype) for _ in range(3))
        value_T = hidden_TH.new_zeros(len(hidden_TH), dtype=dtype)
        num_facts = 0 if position_facts is None else position_facts.num_facts
        facts_TF = hidden_TH.new_zeros(len(hidden_TH), num_facts, dtype=dtype)
        for part in _chunks(len(hidden_TH), chunk_tokens):
            logits_CV = _logits(hidden_TH[part], weight_VH, bias_V, vocab_size)
            if position_value is not None:
                value_T[part] = position_value(logits_CV, _positions(part, hidden_TH))
            if position_facts is not None:
                facts_TF[part] = position_facts(logits_CV, _positions(part, hidden_TH)).to(dtype)
            logp_T[part], entropy_T[part], log_sum_T[part] = _read_chunk(logits_CV, target_ids_T[part])
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T)
        ctx.position_value, ctx.chunk_tokens, ctx.vocab_size = position_value, chunk_tokens, vocab_size
        ctx.mark_non_differentiable(entropy_T, facts_TF, *([] if position_value else [value_T]))
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T, value_T, facts_TF

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logp_T: Tensor | None, _: None, grad_value_T: Tensor | None, __: None
    ) -> tuple[Tensor | None, ...]:
        """Parameter gradients add up in at least float32."""
        hidden_TH, weight_VH, bias_V, target_ids_T, log_sum_T = ctx.saved_tensors
        vocab_size, dtype = ctx.vocab_size, log_sum_T.dtype
        grad_hidden_TH = torch.empty_like(hidden_TH)
        weight_gradient = WeightGradient(weight_VH, vocab_size=vocab_size, dtype=dtype)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=dtype)
        for part in _chunks(len(hidden_TH), ctx.chunk_tokens):
            logits_CV = _logits(hidden_TH[part], weight_VH, bias_V, vocab_size)
            value_CV = None
            if grad_value_T is not None:
                positions_C = _positions(part, hidden_TH)
                value_CV = _gradient_of_value(ctx.position_value, logits_CV, positions_C, grad_value_T[part])
            if grad_logp_T is not None:
                grad_CV = _gradient_of_logp(logits_CV, log_sum_T[part], target_ids_T[part], grad_logp_T[part])
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
        return grad_hidden_TH, weight_gradient.result(), grad_bias_V, *[None] * 5


def _read_chunk(logits_CV: Tensor, target_ids_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets' log-probs, the entropies and the logsumexp; overwrites the logits."""
    highest_C = logits_CV.amax(dim=-1)
    logits_CV.sub_(highest_C[:, None])
    weights_CV = logits_CV.exp()
    sum_C = weights_CV.sum(dim=-1)
    log_sum_C = sum_C.log()
    entropy_C = log_sum_C - torch.linalg.vecdot(weights_CV, logits_CV) / sum_C
    logp_C = logits_CV.gather(1, target_ids_C[:, None])[:, 0] - log_sum_C
    return logp_C, entropy_C, log_sum_C + highest_C


def _gradient_of_logp(logits_CV: Tensor, log_sum_C: Tensor, target_ids_C: Tensor, grad_C: Tensor) -> Tensor:
    """Use d logp / d logits = onehot(target) - p; overwrites the logits."""
    grad_CV = logits_CV.sub_(log_sum_C[:, None]).exp_().mul_(-grad_C[:, None])
    return grad_CV.scatter_add_(1, target_ids_C[:, None], grad_C[:, None])


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
