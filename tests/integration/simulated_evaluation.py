"""An evaluation for simulated engines: its problems are the first places of the prompt order, all solved."""

from pathlib import Path

from evaluation.evaluation import Evaluation, Grading
from evaluation.metrics import Measures
from evaluation.results import EvaluatedProblem
from rewards import avg_at_k, maj_at_k, pass_at_k, pass_at_k_unbiased
from tests.integration.simulated import SAMPLING, SimulatedPrompts
from tests.integration.simulated_run import run_config


def simulated_evaluation(num_problems: int, *, num_benchmarks: int = 1) -> Evaluation:
    """One response to each of so many problems, which are shared out among the benchmarks `bench0`, ..."""
    requests = SimulatedPrompts(run_config(Path("none"))).requests_for(range(num_problems), [0] * num_problems)
    problems = [
        EvaluatedProblem(
            f"bench{place * num_benchmarks // num_problems}", f"p{place}", f"{place} - {place} + 1", "1"
        )
        for place in range(num_problems)
    ]
    grading = Grading(
        decode=lambda responses: [" ".join(map(str, ids)) for ids in responses],
        verdicts=lambda texts, answers: ["right" if answer == "1" else "wrong" for answer in answers],
        extract=lambda text: text.split()[0],
        classes=lambda extracted: [0] * len(extracted),
    )
    measures = Measures(avg_at_k, pass_at_k, pass_at_k_unbiased, maj_at_k)
    return Evaluation(problems, requests, SAMPLING, grading, measures, k=(1,))
