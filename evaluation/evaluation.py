"""Held-out evaluation: engines sample responses to every problem, which are graded and kept as they arrive.

    requests --> engines --(finished problems)--> queue --> grading, in a thread --> kept rows --> results

All workers share the problems; the caller says which workers, and that they hold the same weights meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.exceptions import RayError

import rewards
from actors.engine import Sampling
from actors.engine_settings import evaluation_sampling
from cluster.errors import is_infrastructure
from cluster.pool import Pool
from cluster.streams import finished_slots
from cluster.waiting import together, wait_for
from cluster.worker import Worker
from evaluation.metrics import BenchmarkResult, GradedSample, result_of
from evaluation.results import EvaluatedProblem, result_table, samples_of
from inputs.inputs import Inputs
from inputs.prompts import evaluation_requests
from records.events import reason_of
from settings.cluster import ClusterConfig
from settings.run import RunConfig
from transport.parcels import tables_of_slots

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Rounds of generation in which living workers may fail; each takes what the one before has left."""

MAX_ROUNDS = 50
"""Rounds of generation in all: those in which workers only died count here alone."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation ready to run: one slot per problem of all benchmarks, and how responses are sampled."""

    problems: Sequence[EvaluatedProblem]
    """By slot."""
    requests: pa.Table
    """Every response wanted; `slot` is the place of its problem."""
    sampling: Sampling
    tokenizer: "PreTrainedTokenizerBase"
    k: tuple[int, ...]
    """Results are taken at each of these, the first responses of each problem."""
    grader: rewards.Grader = "strict"

    def results(self, graded: Mapping[int, Sequence[GradedSample]]) -> list[BenchmarkResult]:
        """The numbers of each benchmark at each k, of all slots."""
        slots_of: dict[str, list[int]] = {}
        for slot, problem in enumerate(self.problems):
            slots_of.setdefault(problem.benchmark, []).append(slot)
        return [
            result_of(name, [graded[slot] for slot in slots], k, grader=self.grader)
            for name, slots in slots_of.items()
            for k in self.k
        ]


def evaluation_of(config: RunConfig, inputs: Inputs, *, k: Sequence[int] = ()) -> Evaluation | None:
    """The evaluation of a run, or None without benchmarks; results at each of `k`, by default `evaluation.k`."""
    if not inputs.benchmarks:
        return None
    problems, requests = list[EvaluatedProblem](), list[pa.Table]()
    num_samples, seed = config.evaluation.num_samples, config.seed
    for benchmark in inputs.benchmarks:
        name, first = benchmark.name, len(problems)
        requests.append(
            evaluation_requests(
                benchmark.prompts, num_samples=num_samples, seed=seed, benchmark=name, first_slot=first
            )
        )
        problems += [EvaluatedProblem(name, p.prompt_id, p.text, p.answer or "") for p in benchmark.problems]
    return Evaluation(
        problems=problems,
        requests=pa.concat_tables(requests),
        sampling=evaluation_sampling(config),
        tokenizer=inputs.tokenizer,
        k=tuple(k) or (config.evaluation.k,),
        grader=config.evaluation.grader,
    )


@dataclass(frozen=True)
class Failure:
    """What ended a worker's part of a round early; a refusal, unless its process or node is to blame."""

    error: Exception
    is_refusal: bool


class EvaluationRun:
    """One run of an evaluation. `run()` returns its results once every problem is graded and kept."""

    def __init__(
        self,
        evaluation: Evaluation,
        config: ClusterConfig,
        *,
        keep: Callable[[pa.Table], object] = lambda table: None,
        show: Callable[[int], object] = lambda num_graded: None,
        graded: Mapping[int, Sequence[GradedSample]] | None = None,
        version: int | None = None,
    ) -> None:
        """`keep(table)` takes graded rows, in a thread; `show(number of problems graded)` follows.

        `graded` holds what an earlier run has left, by slot. With `version` every token must be of those weights.
        """
        self._evaluation = evaluation
        self._config = config
        self._keep = keep
        self._show = show
        self._version = version
        self._graded = dict(graded or {})
        self._generated = set(self._graded)
        self._arrived: asyncio.Queue[pa.Table | None] = asyncio.Queue()

    async def run(self, pool: Pool, ready: Callable[[], Awaitable[list[Worker]]]) -> list[BenchmarkResult]:
        """Generate on the workers that `ready()` returns, all of `pool`, and grade.

        `ready` waits until there is one; what a failed worker leaves goes to those of the next call. RuntimeError
        after too many failures.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._grade_arrived())
            await self._generate_all(pool, ready)
            self._arrived.put_nowait(None)
        return self._evaluation.results(self._graded)

    async def _generate_all(self, pool: Pool, ready: Callable[[], Awaitable[list[Worker]]]) -> None:
        num_rounds = num_refused = 0
        while missing := [slot for slot in range(len(self._evaluation.problems)) if slot not in self._generated]:
            workers = await ready()
            shares = [(worker, missing[i :: len(workers)]) for i, worker in enumerate(workers)]
            ended = await together(self._generate(pool, worker, share) for worker, share in shares if share)
            failures = [failure for failure in ended if failure is not None]
            if not failures:
                return
            last = failures[-1].error
            num_rounds += 1
            num_refused += any(failure.is_refusal for failure in failures)
            logger.warning("evaluation, round %d: %s", num_rounds, "; ".join(reason_of(f.error) for f in failures))
            if num_refused == MAX_ATTEMPTS or num_rounds == MAX_ROUNDS:
                raise RuntimeError(f"evaluation failed {num_rounds} times: {reason_of(last)}") from last

    async def _generate(self, pool: Pool, worker: Worker, slots: Collection[int]) -> Failure | None:
        """Take in the rows of each slot as it is finished; returns what ended it early."""
        wanted, requests = set(slots), self._evaluation.requests
        share = pa.array([slot in wanted for slot in requests.column("slot").to_pylist()])
        limits: dict[str, Any] = {"timeout_s": self._config.rollout_timeout_s, "ended": worker.ended}
        limits["what"] = f"evaluation on {worker.name}"
        finished = finished_slots(worker.handle, requests.filter(share), self._evaluation.sampling, **limits)
        with pool.use(worker, "evaluate"):
            try:
                async with aclosing(finished):
                    async for notes, ref in finished:
                        table: pa.Table = await wait_for(ref, **limits)
                        pool.succeed(worker)
                        self._take([note.slot for note in notes], table)
            except (RayError, TimeoutError) as error:
                await pool.examine(worker, error)
                return Failure(error, is_refusal=not worker.is_gone and not is_infrastructure(error))
        return None

    def _take(self, slots: Sequence[int], table: pa.Table) -> None:
        part = pa.concat_tables(tables_of_slots([table], slots))
        versions = {run["version"] for runs in part.column("weight_versions").to_pylist() for run in runs}
        if self._version is not None and versions != {self._version}:
            raise RuntimeError(f"evaluation of v{self._version}: responses were sampled under {sorted(versions)}")
        self._generated.update(slots)
        self._arrived.put_nowait(part)

    async def _grade_arrived(self) -> None:
        """Grade what has arrived meanwhile, again and again, until all has."""
        is_complete = False
        while not is_complete:
            arrived = [await self._arrived.get()]
            while not self._arrived.empty():
                arrived.append(self._arrived.get_nowait())
            is_complete = arrived[-1] is None
            tables = [table for table in arrived if table is not None]
            if tables:
                self._graded |= await asyncio.to_thread(self._grade, pa.concat_tables(tables))
                self._show(len(self._graded))

    def _grade(self, rollouts: pa.Table) -> dict[int, list[GradedSample]]:
        """Judge responses and keep their rows; blocks."""
        slots, responses = (rollouts.column(name).to_pylist() for name in ("slot", "response_token_ids"))
        problems = [self._evaluation.problems[slot] for slot in slots]
        tokenizer = self._evaluation.tokenizer
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in responses]
        answers = [problem.answer for problem in problems]
        graded = rewards.grade_responses(texts, answers, self._evaluation.grader)
        extracted = [each.extracted for each in graded]
        judged = {
            "extracted": extracted,
            "verdict": [each.verdict.value for each in graded],
            "answer_class": _classes(slots, extracted),
        }
        table = result_table(rollouts, problems, texts, judged)
        self._keep(table)
        return samples_of(table)


def _classes(slots: Sequence[int], extracted: Sequence[str]) -> list[int]:
    """Of each answer the first to its problem that equals it; the rows of a slot are beside each other."""
    classes: list[int] = []
    for _, group in groupby(zip(slots, extracted, strict=True), key=lambda row: row[0]):
        classes += rewards.equality_classes([text for _, text in group])
    return classes
