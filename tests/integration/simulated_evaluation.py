"""An evaluation for simulated engines: its problems are the first places of the prompt order, all solved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.evaluation import Evaluation
from evaluation.results import EvaluatedProblem
from tests.integration.simulated import SAMPLING, SimulatedPrompts
from tests.integration.simulated_run import run_config


class Numbers:
    """Decodes to the token ids as text, and the right answer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return f"{' '.join(map(str, token_ids))} #### 1"


def simulated_evaluation(num_problems: int, *, num_benchmarks: int = 1) -> Evaluation:
    """One response to each of so many problems, which are shared out among the benchmarks `bench0`, ..."""
    requests = SimulatedPrompts(run_config(Path("none"))).requests_for(range(num_problems), [0] * num_problems)
    problems = [
        EvaluatedProblem(
            f"bench{place * num_benchmarks // num_problems}", f"p{place}", f"{place} - {place} + 1", "1"
        )
        for place in range(num_problems)
    ]
    tokenizer: Any = Numbers()
    return Evaluation(problems, requests, SAMPLING, tokenizer, k=(1,))
