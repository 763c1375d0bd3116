"""Held-out evaluation on the rollout workers: sample, grade, average.

All engines share the problems; the caller makes sure that they hold the same weights meanwhile.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.exceptions import RayError

from cluster.config import ClusterConfig
from cluster.evaluation_config import EvaluationConfig
from cluster.events import reason_of
from cluster.faults import is_infrastructure
from cluster.parcels import tables_of_slots
from cluster.pool import Pool
from cluster.streams import finished_slots
from cluster.waiting import together, wait_for
from cluster.workers import Worker

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Rounds of generation in which living workers may fail; each takes what the one before has left."""

MAX_ROUNDS = 50
"""Rounds of generation in all: those in which workers only died count here alone."""

Grade = Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]
"""Grades responses (token ids) against answers."""


@dataclass(frozen=True)
class Failure:
    """What ended a worker's part of a round early; a refusal, unless its process or node is to blame."""

    error: Exception
    is_refusal: bool


@dataclass(frozen=True)
class EvaluationResult:
    """Accuracy of one model on one benchmark; fractions in [0, 1], lengths in tokens."""

    benchmark: str
    n: int
    k: int
    avg_at_k: float
    pass_at_k: float
    mean_length: float
    truncated_frac: float

    def row(self) -> dict[str, Any]:
        """As written to `eval.jsonl`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation ready to run: requests (one slot per problem), sampling, and how it is graded."""

    config: EvaluationConfig
    requests: pa.Table
    sampling: Any
    grade: Grade
    avg_at_k: Callable[[Sequence[Sequence[bool]], int], float]
    pass_at_k: Callable[[Sequence[Sequence[bool]], int], float]

    async def run(self, pool: Pool, config: ClusterConfig) -> EvaluationResult:
        """Generate on every healthy worker of `pool` and grade; what a failed worker leaves goes to the others."""
        rows: dict[int, list[dict[str, Any]]] = {}
        wanted = sorted(set(self.requests.column("slot").to_pylist()))
        num_rounds = num_refused = 0
        while True:
            missing = [slot for slot in wanted if slot not in rows]
            workers = await pool.some_healthy()
            shares = [(worker, missing[i :: len(workers)]) for i, worker in enumerate(workers)]
            ended = await together(
                self._generate(pool, worker, share, rows, config) for worker, share in shares if share
            )
            failures = [failure for failure in ended if failure is not None]
            if not failures:
                return self._result([row for slot in wanted for row in rows[slot]])
            last = failures[-1].error
            num_rounds += 1
            num_refused += any(failure.is_refusal for failure in failures)
            logger.warning("evaluation, round %d: %s", num_rounds, "; ".join(reason_of(f.error) for f in failures))
            if num_refused == MAX_ATTEMPTS or num_rounds == MAX_ROUNDS:
                raise RuntimeError(f"evaluation failed {num_rounds} times: {reason_of(last)}") from last

    async def _generate(
        self, pool: Pool, worker: Worker, slots: Collection[int], rows: dict[int, Any], config: ClusterConfig
    ) -> Failure | None:
        """Add the rows of each slot as it is finished; returns what ended it early."""
        share = pa.array([slot in slots for slot in self.requests.column("slot").to_pylist()])
        timeout_s, what = config.rollout_timeout_s, f"evaluation on {worker.name}"
        finished = finished_slots(
            worker.handle, self.requests.filter(share), self.sampling, timeout_s=timeout_s, what=what
        )
        with pool.use(worker, "evaluate"):
            try:
                async with aclosing(finished):
                    async for notes, ref in finished:
                        table: pa.Table = await wait_for(ref, timeout_s=timeout_s, what=what)
                        slots = [note.slot for note in notes]
                        for slot, part in zip(slots, tables_of_slots([table], slots), strict=True):
                            rows[slot] = sorted(part.to_pylist(), key=lambda row: row["sample"])
            except (RayError, TimeoutError) as error:
                await pool.examine(worker, error)
                return Failure(error, is_refusal=not worker.is_gone and not is_infrastructure(error))
        return None

    def _result(self, rows: list[dict[str, Any]]) -> EvaluationResult:
        n, k = self.config.num_samples, self.config.k
        responses = [row["response_token_ids"] for row in rows]
        correct = self.grade(responses, [row["answer"] for row in rows])
        correct_PK = [correct[i : i + n] for i in range(0, len(correct), n)]
        lengths = [len(response) for response in responses]
        return EvaluationResult(
            benchmark=self.config.benchmark,
            n=n,
            k=k,
            avg_at_k=self.avg_at_k(correct_PK, k),
            pass_at_k=self.pass_at_k(correct_PK, k),
            mean_length=sum(lengths) / len(lengths),
            truncated_frac=sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        )
