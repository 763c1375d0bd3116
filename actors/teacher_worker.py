"""ROLLOUTS -> TEACHER SCORES: a prefill-only teacher engine behind a Ray actor.

note, *scored = await worker.score(*rollout_tables)     # one scored table per rollout table
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.engine import Engine, EngineSettings, Sampling, TokenScores
from actors.engine_worker import Scorer, of_target
from actors.rollout_worker import StreamItem, generate_slots
from transport.batches import (
    HIDDEN,
    OUTCOME,
    SCORES,
    TARGETS,
    TOP_K_FIELDS,
    TeacherSignal,
    check_rollouts,
    check_scored,
)
from transport.columns import read_lists
from transport.notes import ScoreNote
from transport.stop_tokens import StopMode, StopTokens

Grade = Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]
"""Grades responses (token ids) against answers."""


class TeacherWorker(Scorer):
    """Adds the teacher's signal at every response token. Pure: a call may be repeated anywhere.

    The signal is that of `settings`: the log-prob of the token, with or without the teacher's top-k tokens, or the
    input of its output head instead. With `grade`, each response is also graded against the answer of its row.
    """

    def __init__(
        self,
        settings: EngineSettings,
        open_engine: Callable[[EngineSettings], Engine],
        *,
        stop_mode: StopMode,
        stops: StopTokens,
        grade: Grade | None = None,
    ) -> None:
        super().__init__(settings, open_engine, stop_mode=stop_mode, stops=stops)
        self._grade = grade
        self._signal = replace(settings.signal, has_outcome=grade is not None)

    async def score(
        self, *rollouts: pa.Table, parcels: Sequence[Sequence[int]] | None = None
    ) -> tuple[ScoreNote | pa.Table, ...]:
        """Return a `ScoreNote` and one scored table per rollout table, in order; or one per parcel of slots.

        All sequences go to the engine together. With stop mode cross_eos the last token is scored as the
        teacher's own stop token (`teacher_target_ids`).
        """
        for table in rollouts:
            check_rollouts(table)
        scored = await self._score(rollouts, lambda labels: labels.teacher_token_ids, self._finished, parcels)
        if self._grade is None:
            return scored
        note, *tables = scored
        # Grading waits for other processes; pings and further calls must not wait for it.
        return note, *await asyncio.to_thread(lambda: [self._graded(table) for table in tables])

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[StreamItem]:
        """Generate with the teacher itself, as a rollout worker does; not with the signal `full`."""
        async with aclosing(generate_slots(self._engine, prompts, sampling)) as items:
            async for item in items:
                yield item

    def _finished(self, table: pa.Table, targets: list[np.ndarray], scores: list[TokenScores]) -> pa.Table:
        return scored_table(table, targets, scores, self._settings.signal)

    def _graded(self, table: Any) -> pa.Table:
        """The table with the outcome of every response, if outcomes are asked for."""
        if self._grade is None:
            return table
        answers = table.column("answer").to_pylist()
        if None in answers:
            prompt_id = table.column("prompt_id")[answers.index(None)].as_py()
            raise ValueError(f"rollout batch: prompt {prompt_id!r} has no answer to grade against")
        correct = self._grade(read_lists(table.column("response_token_ids")).lists(), answers)
        graded = table.append_column(OUTCOME, pa.array(list(map(float, correct)), OUTCOME.type))
        return check_scored(graded, self._signal)


def scored_table(
    rollouts: pa.Table, targets: list[np.ndarray], scores: list[TokenScores], signal: TeacherSignal
) -> pa.Table:
    """Add the teacher's columns to a rollout table; of the scores, those of the targets."""

    def column(field: pa.Field, of: Callable[[TokenScores], np.ndarray | None]) -> pa.Array:
        pairs = zip(targets, scores, strict=True)
        parts = [of_target(of(row), target, field.name).reshape(-1) for target, row in pairs]
        return pa.array([part.data for part in parts] if field is HIDDEN else parts, field.type)

    table = rollouts.append_column(TARGETS, pa.array(targets, TARGETS.type))
    if signal.kind == "full":
        return check_scored(table.append_column(HIDDEN, column(HIDDEN, lambda row: row.hidden)), signal)
    table = table.append_column(SCORES, column(SCORES, lambda row: row.log_probs))
    if signal.kind == "topk":
        ids, log_probs = TOP_K_FIELDS
        table = table.append_column(ids, column(ids, lambda row: row.topk_ids))
        table = table.append_column(log_probs, column(log_probs, lambda row: row.topk_log_probs))
    return check_scored(table, signal)
