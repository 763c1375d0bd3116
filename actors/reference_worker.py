"""SCORED ROLLOUTS -> REFERENCE LOG-PROBS: a frozen model that the objective compares student and teacher with.

note, *scored = await worker.score(*scored_tables)     # the same tables, with `reference_log_probs`
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from actors.engine import Engine, EngineSettings, TokenScores
from actors.engine_worker import Scorer, of_target
from transport.batches import REFERENCE, TeacherSignal, check_scored
from transport.notes import ScoreNote
from transport.stop_tokens import StopMode, StopTokens


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
        super().__init__(settings, open_engine, stop_mode=stop_mode, stops=stops)
        self._signal = signal

    async def score(
        self, *scored: pa.Table, parcels: Sequence[Sequence[int]] | None = None
    ) -> tuple[ScoreNote | pa.Table, ...]:
        """Return a `ScoreNote` and one table per table, or per parcel of slots, with `reference_log_probs`."""
        before = replace(self._signal, has_reference=False)
        for table in scored:
            check_scored(table, before)
        return await self._score(scored, lambda labels: labels.reference_token_ids, self._with_log_probs, parcels)

    def _with_log_probs(self, table: pa.Table, targets: list[np.ndarray], scores: list[TokenScores]) -> pa.Table:
        log_probs = [
            of_target(row.log_probs, target, REFERENCE.name) for target, row in zip(targets, scores, strict=True)
        ]
        return check_scored(table.append_column(REFERENCE, pa.array(log_probs, REFERENCE.type)), self._signal)
