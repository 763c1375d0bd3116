"""Settings of held-out evaluation."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from cluster.engine_config import Fraction, NonNegative, Positive, Section


class EvaluationConfig(Section):
    """Held-out evaluation with the rollout workers."""

    data_path: str | None = None
    """JSONL file of held-out problems with answers; no evaluation without it."""
    benchmark: str = "heldout"
    """Name of the benchmark in `eval.jsonl`."""
    every_steps: NonNegative = 0
    """Evaluate every this many steps; 0 only before and after training."""
    num_samples: Positive = 8
    """Responses per problem (n)."""
    k: Positive = 8
    """avg@k and pass@k are taken over the first k responses."""
    max_problems: Positive | None = None
    """Use only the first so many problems."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature at evaluation."""
    top_p: Fraction = 1.0
    """Nucleus sampling at evaluation."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Top-k sampling at evaluation; -1 is all."""
    max_response_tokens: Positive | None = None
    """Response limit at evaluation; by default the rollout's."""
    teacher: bool = True
    """Evaluate every teacher once before training; not with objectives on whole distributions (reverse_kl, ...),
    for which its engines have no output head."""

    @model_validator(mode="after")
    def _k_within_samples(self) -> Self:
        if self.k > self.num_samples:
            raise ValueError(f"evaluation.k must be <= evaluation.num_samples ({self.num_samples}), got {self.k}")
        return self
