"""Settings of evaluation on held-out problems."""

import difflib
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from settings.benchmarks import known_benchmarks, load_definition
from settings.engine import Fraction, NonNegative, Positive, Samples, Section, TopK

NAME = r"[A-Za-z0-9_.-]{1,50}"

Path = Annotated[str, Field(min_length=1)]


class EvaluationConfig(Section):
    """Evaluation on held-out problems, by the rollout workers or by dedicated workers."""

    data_path: str | None = None
    """Data set of held-out problems with answers, evaluated in addition to `benchmarks`."""
    benchmark: Annotated[str, Field(pattern=f"^{NAME}$")] = "heldout"
    """Name of `data_path` in results."""
    benchmarks: list[str] = Field(default=[])
    """Benchmarks by name (gsm8k, math500, ...), as defined in `configs/benchmarks/`. One that is not defined there
    is read from its entry in `paths`, with the columns problem, answer and id."""
    paths: dict[str, Path] = Field(default={})
    """File, folder or hub name of a benchmark, instead of the one in its definition."""
    every_steps: NonNegative = 0
    """Steps between evaluations; 0 evaluates only before and after training."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Dedicated workers that evaluate during training, with the resources of a rollout worker each. 0: one rollout
    worker is borrowed for each periodic evaluation, and all of them evaluate before and after training."""
    num_samples: Samples = 8
    """Responses per problem (n)."""
    k: Samples = 8
    """k of avg@k and pass@k, computed from the first k responses."""
    max_problems: Positive | None = None
    """Maximum number of problems of each benchmark, from the first."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature at evaluation."""
    top_p: Fraction = 1.0
    """Nucleus sampling at evaluation."""
    top_k: TopK = -1
    """Top-k sampling at evaluation; -1 disables it."""
    max_response_tokens: Positive | None = None
    """Maximum response length at evaluation; by default that of rollouts."""
    grader: Literal["strict", "lenient"] = "strict"
    """How the final answer of a response is found: strict takes the last box, else what follows the last `####`,
    else all of it; lenient also reads "the answer is 7", and else the last expression, as evaluations of base
    models do. The same grader gives outcome rewards (`outcome.rl_coef`)."""
    teacher: bool = True
    """Evaluate every teacher once before training. Not with objectives on full distributions (reverse_kl, ...),
    whose teacher engines have no output head."""

    @model_validator(mode="after")
    def _k_within_samples(self) -> Self:
        if self.k > self.num_samples:
            raise ValueError(f"evaluation.k must be <= evaluation.num_samples ({self.num_samples}), got {self.k}")
        return self

    @model_validator(mode="after")
    def _benchmarks_are_known(self) -> Self:
        for name in self.benchmarks:
            if name in self.paths and not re.fullmatch(NAME, name) and not name.endswith((".yaml", ".yml")):
                raise ValueError(f"evaluation.benchmarks: {name!r} must be of letters, digits, '.', '_' and '-'")
            if name not in self.paths:
                try:
                    load_definition(name)
                except ValueError as error:
                    raise ValueError(f"evaluation.{error}") from error
        names = [*self.benchmarks, *([self.benchmark] if self.data_path is not None else [])]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"evaluation.benchmarks: {twice!r} is named twice")
        for name in self.paths:
            if name not in self.benchmarks:
                close = difflib.get_close_matches(name, self.benchmarks or known_benchmarks(), n=1, cutoff=0.0)
                raise ValueError(
                    f"evaluation.paths: {name!r} is not among evaluation.benchmarks (nearest valid: {close[0]})"
                )
        return self

    @model_validator(mode="after")
    def _own_workers_have_work(self) -> Self:
        if self.num_workers and not self.is_wanted:
            raise ValueError(
                f"evaluation.num_workers must be 0 without evaluation.benchmarks or evaluation.data_path, got "
                f"{self.num_workers}"
            )
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self.benchmarks) or self.data_path is not None
