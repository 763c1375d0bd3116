"""SCORED ROLLOUTS -> REFERENCE LOG-PROBS: a frozen model that the objective compares student and teacher with.

note, *scored = await worker.score(*scored_tables)     # the same tables, with `reference_log_probs`
"""

import time
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from actors.engine import Engine, EngineSettings
from actors.scorer import Scorer
from cluster.batches import REFERENCE, check_scored
from cluster.notes import ScoreNote
from cluster.stop_tokens import StopMode, StopTokens, stop_labels
from cluster.teacher_signal import TeacherSignal


class ReferenceWorker(Scorer):
    """Adds the reference model's log-prob of every response token to tables that a teacher has scored.

    With stop mode cross_eos the reference is asked for its own stop token, as student and teacher are for theirs:
    each side of the objective's two differences is then about the same event, that the response ends here.
    """

    def __init__(
        self,
        settings: EngineSettings,
        open_engine: Callable[[EngineSettings], Engine],
        *,
        signal: TeacherSignal,
        stop_mode: StopMode,
        stops: StopTokens,
    ) -> None:
        """`signal` is that of the finished tables: `has_reference` is true."""
        super().__init__(settings, open_engine)
        self._signal = signal
        self._stop_mode: StopMode = stop_mode
        self._stops = stops

    async def score(self, *scored: pa.Table) -> tuple[ScoreNote | pa.Table, ...]:
        """Return a `ScoreNote` and one table per table, in order, with `reference_log_probs`."""
        start = time.perf_counter()
        before = replace(self._signal, has_reference=False)
        prompts, targets = [], []
        for table in scored:
            check_scored(table, before)
            prompts += table.column("prompt_token_ids").to_pylist()
            targets += [
                stop_labels(ids, mode=self._stop_mode, stops=self._stops, source=source).reference_token_ids
                for ids, source in zip(
                    table.column("response_token_ids").to_pylist(), table.column("source").to_pylist(), strict=True
                )
            ]
        scores = await self._score(prompts, targets)
        log_probs = []
        for target, row in zip(targets, scores, strict=True):
            assert row.log_probs is not None, "the engine returned no log-probs"
            log_probs.append(row.log_probs[len(row.log_probs) - len(target) :])
        tables, first = [], 0
        for table in scored:
            column = pa.array(log_probs[first : first + table.num_rows], REFERENCE.type)
            tables.append(check_scored(table.append_column(REFERENCE, column), self._signal))
            first += table.num_rows
        num_tokens = sum(map(len, prompts)) + sum(map(len, targets))
        return ScoreNote(num_tokens=num_tokens, seconds=time.perf_counter() - start), *tables
