"""A few problems answered before and after training, with the reward of every token: `samples.jsonl`.

    requests --> a rollout worker (one response each) --> a worker of each teacher --> describe(rows) --> rows

A row: `when` (before or after), `step`, `problem_id`, `prompt`, `finish_reason`, `num_tokens`, `value` (what
`values` holds: "reward", "log-ratio" or null), and, one per response token that is kept, `tokens` (texts),
`student_logp`, `teacher_logp`, `values` and `is_trained`. A number that is not finite is null. What cannot be had
of a response is null as a whole.

The run continues without samples if they cannot be had.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from ray.exceptions import RayError

from actors.engine import Sampling
from cluster.pool import Pool
from cluster.streams import finished_slots
from cluster.waiting import wait_for
from controller.context import RunContext
from records.events import reason_of
from records.files import RowFile, read_rows
from settings.teachers import role_of_source

logger = logging.getLogger(__name__)

TIMEOUT_S = 300.0
"""Maximum time of the samples in a run that may wait longer for a rollout."""

Describe = Callable[[pa.Table, int], list[dict[str, Any]]]
"""The entries of rows from a scored table of the objective's kind; the int is the step."""


class Samples:
    """Takes the samples of a run, once before and once after training."""

    def __init__(
        self,
        context: RunContext,
        *,
        requests: pa.Table,
        sampling: Sampling,
        describe: Describe,
    ) -> None:
        """`requests` has one row per problem; the slot numbers it."""
        self._config, self._pools = context.config, context.pools
        self._folder, self._events = context.folder, context.events
        self._requests = requests
        self._sampling = sampling
        self._describe = describe
        self._role_of_source = role_of_source(context.config)
        self._rows = RowFile(context.folder.samples, check=context.folder.owner.check)

    async def take(self, when: str, version: int) -> None:
        """Sample, score and write; nothing if the folder holds these samples. Faults are only recorded."""
        if any(row.get("when") == when for row in read_rows(self._folder.samples)):
            return
        try:
            scored = await self._scored(await self._generated(version))
            rows = [row for table in scored for row in self._describe(table, version)]
        except (RayError, TimeoutError, ValueError) as error:
            self._events.add("samples_failed", when=when, reason=reason_of(error))
            return
        for row in rows:
            self._rows.append({"when": when, "step": version, **row})

    async def _generated(self, version: int) -> list[pa.Table]:
        """The rollouts, from one worker that holds these weights."""
        pool, timeout_s = self._pools["rollout"], min(TIMEOUT_S, self._config.cluster.rollout_timeout_s)
        worker = next((worker for worker in pool.healthy if worker.version == version), None)
        if worker is None:
            raise ValueError(f"no rollout worker holds version {version}")
        what = f"samples from {worker.name}"
        items = finished_slots(
            worker.handle, self._requests, self._sampling, timeout_s=timeout_s, what=what, ended=worker.ended
        )
        tables: list[pa.Table] = []
        with pool.use(worker, "samples"):
            async with aclosing(items):
                async for _, ref in items:
                    tables.append(await wait_for(ref, timeout_s=timeout_s, what=what, ended=worker.ended))
        return tables

    async def _scored(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """The same with the teachers' columns; every problem goes to the teacher of its source."""
        found = []
        rows = pa.concat_tables(tables).sort_by("slot")
        sources = rows.column("source").to_pylist()
        for role in self._config.teacher_of_role:
            chosen = [self._role_of_source.get(source, "teacher") == role for source in sources]
            if any(chosen):
                found.append(await self._score(self._pools[role], rows.filter(pa.array(chosen))))
        return found

    async def _score(self, pool: Pool, table: pa.Table) -> pa.Table:
        worker = (await pool.some_healthy())[0]
        timeout_s = min(TIMEOUT_S, self._config.cluster.score_timeout_s)
        what = f"scores of samples from {worker.name}"
        with pool.use(worker, "samples"):
            _, ref = worker.handle.score.options(num_returns=2).remote(table)
            return await wait_for(ref, timeout_s=timeout_s, what=what, ended=worker.ended)
