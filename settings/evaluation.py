"""Settings of held-out evaluation."""

import difflib
import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from settings.benchmarks import known_benchmarks, load_definition
from settings.engine import Fraction, NonNegative, Positive, Section

NAME = r"[A-Za-z0-9_.-]{1,50}"
"""Of a benchmark: it names a file of results."""

Path = Annotated[str, Field(min_length=1)]


class EvaluationConfig(Section):
    """Held-out evaluation with the rollout workers, or with workers of its own."""

    data_path: str | None = None
    """JSONL file of held-out problems with answers: one benchmark more, besides `benchmarks`."""
    benchmark: Annotated[str, Field(pattern=f"^{NAME}$")] = "heldout"
    """Name of the benchmark of `data_path` in results."""
    benchmarks: list[str] = Field(default=[])
    """Benchmarks by name (gsm8k, math500, ...), as `configs/benchmarks/` defines them. One that is not defined
    there is read from its file in `paths`, with the columns problem, answer and id."""
    paths: dict[str, Path] = Field(default={})
    """File, folder or hub name that a benchmark is read from, instead of the one its definition names."""
    every_steps: NonNegative = 0
    """Evaluate every this many steps; 0 only before and after training."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Workers of its own that evaluate beside training, each reserving what a rollout worker does. 0: one rollout
    worker is borrowed while a periodic evaluation runs, and all of them evaluate before and after training."""
    num_samples: Positive = 8
    """Responses per problem (n)."""
    k: Positive = 8
    """avg@k and pass@k are taken over the first k responses."""
    max_problems: Positive | None = None
    """Use only the first so many problems of each benchmark."""
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
        """Whether there is anything to evaluate on."""
        return bool(self.benchmarks) or self.data_path is not None
