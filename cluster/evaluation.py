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

from cluster.config import ClusterConfig, EvaluationConfig
from cluster.events import reason_of
from cluster.parcels import tables_of_slots
from cluster.pool import Pool
from cluster.streams import finished_slots
from cluster.waiting import together, wait_for
from cluster.workers import Worker

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Rounds of generation; each takes what failed workers left of the one before."""

Grade = Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]
"""Grades responses (token ids) against answers."""


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
        errors: list[Exception] = []
        wanted = sorted(set(self.requests.column("slot").to_pylist()))
        for attempt in range(MAX_ATTEMPTS):
            missing = [slot for slot in wanted if slot not in rows]
            workers = await pool.some_healthy()
            shares = [(worker, missing[i :: len(workers)]) for i, worker in enumerate(workers)]
            failed = await together(
                self._generate(pool, worker, share, rows, config) for worker, share in shares if share
            )
            errors = [error for error in failed if error is not None]
            if not errors:
                return self._result([row for slot in wanted for row in rows[slot]])
            logger.warning("evaluation, attempt %d: %s", attempt, "; ".join(map(reason_of, errors)))
        raise RuntimeError(f"evaluation failed {MAX_ATTEMPTS} times: {reason_of(errors[-1])}") from errors[-1]

    async def _generate(
        self, pool: Pool, worker: Worker, slots: Collection[int], rows: dict[int, Any], config: ClusterConfig
    ) -> Exception | None:
        """Add the rows of each slot as it is finished; returns the error that ended it early."""
        share = pa.array([slot in slots for slot in self.requests.column("slot").to_pylist()])
        timeout_s, what = config.rollout_timeout_s, f"evaluation on {worker.name}"
        finished = finished_slots(
            worker.handle, self.requests.filter(share), self.sampling, timeout_s=timeout_s, what=what
        )
        with pool.use(worker):
            try:
                async with aclosing(finished):
                    async for notes, ref in finished:
                        table: pa.Table = await wait_for(ref, timeout_s=timeout_s, what=what)
                        slots = [note.slot for note in notes]
                        for slot, part in zip(slots, tables_of_slots([table], slots), strict=True):
                            rows[slot] = sorted(part.to_pylist(), key=lambda row: row["sample"])
            except (RayError, TimeoutError) as error:
                await pool.examine(worker, error)
                return error
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
