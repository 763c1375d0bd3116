"""An engine behind a Ray actor: what all workers have in common, and what those that score have."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from actors.engine import Engine, EngineSettings, TokenScores
from cluster.notes import ScoreNote
from cluster.parcels import repacked
from cluster.stop_tokens import StopLabels, StopMode, StopTokens, stop_labels


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

    async def ping(self) -> None:
        """Answer, to show that the actor lives."""

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

    async def _score(
        self,
        tables: Sequence[pa.Table],
        target_of: Callable[[StopLabels], list[int]],
        finish: Callable[[pa.Table, list[list[int]], list[TokenScores]], pa.Table],
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
            prompts += table.column("prompt_token_ids").to_pylist()
            targets += map(target_of, self._labels(table))
        sequences = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        scores = await self._engine.score(sequences)
        finished, first = [], 0
        for table in tables:
            part = slice(first, first + table.num_rows)
            finished.append(finish(table, targets[part], scores[part]))
            first += table.num_rows
        note = ScoreNote(num_tokens=sum(map(len, sequences)), seconds=time.perf_counter() - start)
        return note, *finished

    def _labels(self, table: pa.Table) -> Iterator[StopLabels]:
        responses, sources = table.column("response_token_ids").to_pylist(), table.column("source").to_pylist()
        for response, source in zip(responses, sources, strict=True):
            yield stop_labels(response, mode=self._stop_mode, stops=self._stops, source=source)


def of_target(values: np.ndarray | None, target: Sequence[int], name: str) -> np.ndarray:
    """Return the last entries of a sequence's values: those of its target; `name` is said if there are none."""
    assert values is not None, f"the engine returned no {name}"
    return values[len(values) - len(target) :]
