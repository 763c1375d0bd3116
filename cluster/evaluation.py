"""Held-out evaluation on the rollout workers: sample, grade, average.

All engines share the problems; the caller makes sure that they hold the same weights meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.config import ClusterConfig, EvaluationConfig
from cluster.notes import EndOfStream
from cluster.pool import Pool, Worker
from cluster.waiting import wait_for

logger = logging.getLogger(__name__)

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

    def summary(self) -> dict[str, float]:
        """As written to `summary.json`."""
        return {
            f"avg_at_{self.k}": self.avg_at_k,
            f"pass_at_{self.k}": self.pass_at_k,
            "mean_length": self.mean_length,
            "truncated_frac": self.truncated_frac,
        }


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
        """Generate on every healthy worker of `pool` and grade."""
        workers = pool.healthy
        slots = sorted(set(self.requests.column("slot").to_pylist()))
        shares = [set(slots[i :: len(workers)]) for i in range(len(workers))]
        parts = await asyncio.gather(
            *(
                self._generate(worker, share, config)
                for worker, share in zip(workers, shares, strict=True)
                if share
            )
        )
        rows = sorted((row for part in parts for row in part), key=lambda row: (row["slot"], row["sample"]))
        return self._result(rows)

    async def _generate(self, worker: Worker, slots: set[int], config: ClusterConfig) -> list[dict[str, Any]]:
        wanted = pa.array([slot in slots for slot in self.requests.column("slot").to_pylist()])
        stream = worker.handle.generate.options(num_returns="streaming").remote(
            self.requests.filter(wanted), self.sampling
        )
        rows: list[dict[str, Any]] = []
        what = f"evaluation on {worker.name}"
        while True:
            ref = await wait_for(stream.__anext__(), timeout_s=config.rollout_timeout_s, what=what)
            item: Any = await wait_for(ref, timeout_s=config.rollout_timeout_s, what=what)
            if isinstance(item, EndOfStream):
                return rows
            if isinstance(item, pa.Table):
                rows += item.to_pylist()

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
