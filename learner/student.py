"""The student as the learner sees it: tokens -> log-probs of given targets, in place of logits.

Shapes: N packed tokens, T response tokens, H hidden size, V vocabulary, F facts.
"""

import torch
from torch import Tensor, nn

from learner.log_probs import HeadLimits, PositionFacts, PositionValue, head_values
from learner.packed_attention import sequence_bounds


class StudentModel(nn.Module):
    """A Hugging Face causal language model that returns log-probs of given tokens instead of logits."""

    def __init__(self, causal_lm: nn.Module, limits: HeadLimits) -> None:
        """Wrap `causal_lm`; its parameters keep their names under the prefix `causal_lm.`."""
        super().__init__()
        self.causal_lm = causal_lm
        self.head = LogProbHead(
            causal_lm.get_output_embeddings(),  # pyright: ignore[reportCallIssue]
            limits,
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
            input_ids=input_ids_N[None],
            attention_mask=sequence_bounds(self.causal_lm, position_ids_N),
            position_ids=position_ids_N[None],
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden_1NH[0, source_positions_T], target_ids_T, position_value, position_facts)

    @property
    def num_parameters(self) -> int:
        """Weights that are trained, also where ZeRO-3 has them elsewhere."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.parameters() if p.requires_grad)

    @property
    def context(self) -> int:
        """Positions that the model was made for."""
        return int(self.causal_lm.config.get_text_config().max_position_embeddings)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]

    def check_packing(self, token_ids_N: Tensor, *, limit: float, longest: int = 1) -> None:
        """ValueError if a sequence has other log-probs packed behind others, one `longest` long, than alone.

        Then the model does not read restarting position ids as a new sequence, and would learn from other
        responses' tokens; or it turns all positions by the longest one. That costs no long sequence here: one of
        two tokens, the first position and the last, is as long for the latter.
        """
        inputs_N, targets_T = token_ids_N[:-1], token_ids_N[1:]
        positions_N = torch.arange(len(inputs_N), device=token_ids_N.device)
        alone_T = self(inputs_N, positions_N, positions_N, targets_T)[0]
        ends_2 = positions_N.new_tensor([0, max(longest - 1, 1)])
        behind = positions_N + 2 + len(inputs_N)
        packed_N = torch.cat([token_ids_N[:2], inputs_N, inputs_N])
        packed_T = self(packed_N, torch.cat([ends_2, positions_N, positions_N]), behind, targets_T)[0]
        difference = (alone_T - packed_T).abs().mean().item()
        if not difference <= limit:
            raise ValueError(
                f"{type(self.causal_lm).__name__} lets packed sequences see one another, or turns positions by "
                f"the longest: log-probs differ by {difference:.3g} on average, limit {limit}; the learner does "
                "not support it"
            )

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
        own_NV = logits_1NV[0, :, : self.head.limits.vocab_size].float().log_softmax(dim=-1)
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

    def __init__(self, output_embeddings: nn.Module | None, limits: HeadLimits) -> None:
        """Share the weight [V, H] and bias of `output_embeddings`."""
        super().__init__()
        if output_embeddings is None or not hasattr(output_embeddings, "weight"):
            raise ValueError("the student has no output embedding (lm_head) to take log-probs from")
        self.weight: nn.Parameter = output_embeddings.weight  # pyright: ignore[reportAttributeAccessIssue]
        self.bias: nn.Parameter | None = getattr(output_embeddings, "bias", None)
        self.limits = limits

    def forward(
        self,
        hidden_TH: Tensor,
        target_ids_T: Tensor,
        position_value: PositionValue | None = None,
        position_facts: PositionFacts | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (logp_T with gradient, entropy_T without, value_T, facts_TF), the last two if asked for."""
        callbacks = (position_value, position_facts)
        outputs = head_values(hidden_TH, self.weight, self.bias, target_ids_T, *callbacks, limits=self.limits)
        return outputs if position_facts is not None else outputs[: 2 if position_value is None else 3]
