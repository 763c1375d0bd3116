"""A frozen model behind a Ray actor that scores sequences: what teacher and reference workers have in common."""

import time
from collections.abc import Callable, Sequence

from actors.engine import Engine, EngineSettings, TokenScores


class Scorer:
    """Builds the engine, answers, and stops it. Scoring is pure: a call may be repeated anywhere."""

    def __init__(self, settings: EngineSettings, open_engine: Callable[[EngineSettings], Engine]) -> None:
        self._settings = settings
        self._open_engine = open_engine

    async def start(self) -> float:
        """Build the engine; returns the seconds it took."""
        start = time.perf_counter()
        self._engine = self._open_engine(self._settings)
        self._engine.serve_own_weights()
        return time.perf_counter() - start

    async def ping(self) -> None:
        """Answer, to show that the actor lives."""

    async def shutdown(self) -> None:
        """Stop the engine, if it was started."""
        if hasattr(self, "_engine"):
            self._engine.shutdown()

    async def _score(self, prompts: Sequence[list[int]], targets: Sequence[list[int]]) -> list[TokenScores]:
        """Score every prompt with its target, all together; of a sequence, the last entries are the target's."""
        return await self._engine.score([prompt + target for prompt, target in zip(prompts, targets, strict=True)])
