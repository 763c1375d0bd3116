"""The engine behind a Ray actor: the base of all workers, and of those that score."""

import os
import time
from collections.abc import Callable, Sequence, Sized

import numpy as np
import pyarrow as pa

from actors.engine import Engine, EngineSettings, TokenScores
from transport.columns import Ragged, read_lists
from transport.notes import Heartbeat, ScoreNote
from transport.parcels import repacked
from transport.stop_tokens import StopLabels, StopMode, StopTokens, stop_labels


class EngineWorker:
    """Builds the engine, answers, and stops it."""

    def __init__(self, settings: EngineSettings, open_engine: Callable[[EngineSettings], Engine]) -> None:
        self._settings = settings
        self._open_engine = open_engine

    async def start(self) -> float:
        """Build the engine; returns the seconds it took."""
        start = time.perf_counter()
        self._engine = self._open_engine(self._settings)
        return time.perf_counter() - start

    async def serve_own_weights(self) -> None:
        """Serve the model as loaded from its folder: one that is not trained."""
        self._engine.serve_own_weights()

    async def ping(self) -> Heartbeat:
        """Report that the actor is alive, and its engine's progress."""
        vitals = self._engine.vitals()
        return Heartbeat(os.getpid(), vitals.progress, vitals.num_unfinished > 0, vitals.failure)

    async def shutdown(self) -> None:
        """Stop the engine, if it was started."""
        if hasattr(self, "_engine"):
            self._engine.shutdown()


class Scorer(EngineWorker):
    """A frozen model that scores responses. Scoring is pure: a call may be repeated anywhere."""

    def __init__(
        self,
        settings: EngineSettings,
        open_engine: Callable[[EngineSettings], Engine],
        *,
        stop_mode: StopMode,
        stops: StopTokens,
    ) -> None:
        super().__init__(settings, open_engine)
        self._stop_mode: StopMode = stop_mode
        self._stops = stops

    async def start(self) -> float:
        """Build the engine and let it serve its own weights; returns the seconds it took."""
        seconds = await super().start()
        await self.serve_own_weights()
        return seconds

    async def log_probs_of(self, token_ids: Sequence[int]) -> list[float]:
        """Return a value for every token but the first of a fixed sequence, comparable between replicas.

        The token's log-prob, or, if the signal is the input of the output head, the logarithm of its RMS.
        """
        [scores] = await self._engine.score([token_ids])
        if scores.log_probs is not None:
            return scores.log_probs.tolist()
        assert scores.hidden is not None, "an engine returns log-probs or the input of its head"
        return log_rms(scores.hidden, self._settings.dtype).tolist()

    async def _score(
        self,
        tables: Sequence[pa.Table],
        target_of: Callable[[StopLabels], list[int]],
        finish: Callable[[pa.Table, list[np.ndarray], list[TokenScores]], pa.Table],
        parcels: Sequence[Sequence[int]] | None,
    ) -> tuple[ScoreNote | pa.Table, ...]:
        """Score the targets of all rows together; returns a note, and `finish(table, targets, scores)` of each.

        `target_of` chooses a row's target among its labels. With `parcels`, those slots of `tables` are scored,
        and a table is returned for each parcel.
        """
        start = time.perf_counter()
        tables = repacked(tables, parcels)
        prompts, targets = [], []
        for table in tables:
            prompts += read_lists(table.column("prompt_token_ids")).lists()
            targets += self._targets(table, target_of)
        sequences = [prompt + target.tolist() for prompt, target in zip(prompts, targets, strict=True)]
        scores = await self._engine.score(sequences)
        finished, first = [], 0
        for table in tables:
            part = slice(first, first + table.num_rows)
            finished.append(finish(table, targets[part], scores[part]))
            first += table.num_rows
        note = ScoreNote(num_tokens=sum(map(len, sequences)), seconds=time.perf_counter() - start)
        return note, *finished

    def _targets(self, table: pa.Table, target_of: Callable[[StopLabels], list[int]]) -> list[np.ndarray]:
        """The labels of one side: the responses, whose last token may be another to it."""
        responses = read_lists(table.column("response_token_ids"))
        labels, last = responses.values.copy(), responses.starts[1:] - 1
        sources = table.column("source").to_pylist()
        for place, token_id, source in zip(last.tolist(), labels[last].tolist(), sources, strict=True):
            alone = stop_labels([token_id], mode=self._stop_mode, stops=self._stops, source=source)
            [labels[place]] = target_of(alone)
        return Ragged(labels, responses.starts).rows()


def of_target(values: np.ndarray | None, target: Sized, name: str) -> np.ndarray:
    """Return the last entries of a sequence's values: those of its target; `name` appears in the error."""
    assert values is not None, f"the engine returned no {name}"
    return values[len(values) - len(target) :]


def log_rms(hidden: np.ndarray, dtype: str) -> np.ndarray:
    """Logarithm of the root mean square of each row of vectors given as bytes: uint8 [N, bytes] -> float64 [N]."""
    if dtype == "bfloat16":
        values = (hidden.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = hidden.view(np.float32)
    return np.log(np.sqrt(np.mean(np.square(values.astype(np.float64)), axis=1)) + 1e-30)
