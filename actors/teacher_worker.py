"""ROLLOUTS -> TEACHER SCORES: a prefill-only teacher engine behind a Ray actor.

note, *scored = await worker.score(*rollout_tables)     # one scored table per rollout table
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import numpy as np
import pyarrow as pa

from actors.engine import Engine, EngineSettings, Sampling, TokenScores
from actors.rollout_worker import StreamItem, generate_slots
from cluster.batches import HIDDEN, SCORES, TARGETS, TOP_K_FIELDS, check_rollouts, check_scored
from cluster.notes import ScoreNote
from cluster.stop_tokens import StopMode, StopTokens, stop_labels
from cluster.teacher_signal import TeacherSignal


class TeacherWorker:
    """Adds the teacher's signal at every response token. Pure: a call may be repeated anywhere.

    The signal is that of `settings`: the log-prob of the token, the teacher's likeliest tokens too, or the input
    of its output head instead.
    """

    def __init__(
        self,
        settings: EngineSettings,
        open_engine: Callable[[EngineSettings], Engine],
        *,
        stop_mode: StopMode,
        stops: StopTokens,
    ) -> None:
        self._settings = settings
        self._open_engine = open_engine
        self._stop_mode: StopMode = stop_mode
        self._stops = stops

    async def start(self) -> float:
        """Build the engine; returns the seconds it took."""
        start = time.perf_counter()
        self._engine = self._open_engine(self._settings)
        self._engine.serve_own_weights()
        return time.perf_counter() - start

    async def ping(self) -> None:
        """Answer, to show that the actor lives."""

    async def score(self, *rollouts: pa.Table) -> tuple[ScoreNote | pa.Table, ...]:
        """Return a `ScoreNote` and one scored table per rollout table, in order.

        All sequences go to the engine together. With stop mode cross_eos the last token is scored as the
        teacher's own stop token (`teacher_target_ids`).
        """
        start = time.perf_counter()
        prompts, targets = [], []
        for table in map(check_rollouts, rollouts):
            prompts += table.column("prompt_token_ids").to_pylist()
            targets += [self._targets(ids) for ids in table.column("response_token_ids").to_pylist()]
        sequences = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        scores = await self._engine.score(sequences)
        tables, first = [], 0
        for table in rollouts:
            rows = slice(first, first + table.num_rows)
            tables.append(scored_table(table, targets[rows], scores[rows], self._settings.signal))
            first += table.num_rows
        note = ScoreNote(num_tokens=sum(map(len, sequences)), seconds=time.perf_counter() - start)
        return note, *tables

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[StreamItem]:
        """Generate with the teacher itself, as a rollout worker does; not with the signal `full`."""
        async with aclosing(generate_slots(self._engine, prompts, sampling)) as items:
            async for item in items:
                yield item

    def _targets(self, response_token_ids: list[int]) -> list[int]:
        return stop_labels(response_token_ids, mode=self._stop_mode, stops=self._stops).teacher_token_ids

    async def shutdown(self) -> None:
        """Stop the engine, if it was started."""
        if hasattr(self, "_engine"):
            self._engine.shutdown()


def scored_table(
    rollouts: pa.Table, targets: list[list[int]], scores: list[TokenScores], signal: TeacherSignal
) -> pa.Table:
    """Add the teacher's columns to a rollout table; of the scores, those of the targets."""

    def column(field: pa.Field, of: Callable[[TokenScores], np.ndarray | None]) -> pa.Array:
        parts = []
        for target, row in zip(targets, scores, strict=True):
            values = of(row)
            assert values is not None, f"the engine returned no {field.name}"
            flat = values[len(values) - len(target) :].reshape(-1)
            parts.append(flat.tobytes() if field is HIDDEN else flat)
        return pa.array(parts, field.type)

    table = rollouts.append_column(TARGETS, pa.array(targets, TARGETS.type))
    if signal.kind == "full":
        return check_scored(table.append_column(HIDDEN, column(HIDDEN, lambda row: row.hidden)), signal)
    table = table.append_column(SCORES, column(SCORES, lambda row: row.log_probs))
    if signal.kind == "topk":
        ids, log_probs = TOP_K_FIELDS
        table = table.append_column(ids, column(ids, lambda row: row.topk_ids))
        table = table.append_column(log_probs, column(log_probs, lambda row: row.topk_log_probs))
    return check_scored(table, signal)
