"""What a worker asks of its inference engine: generate, score, load weights. Workers know only this protocol.

The real engine is `actors.vllm.engine.VllmEngine`; tests drive workers with small engines of their own.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from settings.engine import EngineConfig
from transport.batches import SAMPLED, TeacherSignal
from transport.notes import LoadReport
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest


@dataclass(frozen=True)
class EngineSettings:
    """One engine: which model, in which precision, on which device."""

    model_path: str
    dtype: str
    device: str  # "cpu" or "cuda"
    seed: int
    vocab_size: int  # ids the tokenizer knows; larger ids are never sampled
    stop_token_ids: tuple[int, ...]
    config: EngineConfig
    signal: TeacherSignal = SAMPLED
    """What `score` returns. An engine with the signal `full` has no output head: it cannot generate."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    golden_limit: float | None = None
    """Largest difference to the learner's golden log-probs that a weight load may show; None: the precision's."""
    shares_weights: bool = True
    """Whether loaded weights stay in a file that all engines of the node use, as broadcasts and differences need
    it. An engine of one process may do without, and load them from where they arrived."""


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled. Behaviour log-probs are raw: before temperature and truncation."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_token_ids: tuple[int, ...] = ()
    """What ends a response; by default all that the engine was given."""


@dataclass(frozen=True)
class GenerationRequest:
    """One response wanted; `request_id` is unique while the request lives."""

    request_id: str
    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Generation:
    """One finished response with its raw log-probs [T] and (weight version, tokens) runs in token order."""

    request_id: str
    token_ids: list[int]
    log_probs: np.ndarray
    version_runs: list[tuple[int, int]]
    finish_reason: str


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A teacher's signal on one sequence; entry i is about token i + 1 given tokens 0..i."""

    log_probs: np.ndarray | None = None
    """float32 [len - 1]; none with the signal `full`."""
    topk_ids: np.ndarray | None = None
    """int32 [len - 1, k], most likely first; only with the signal `topk`."""
    topk_log_probs: np.ndarray | None = None
    """float32 [len - 1, k]."""
    hidden: np.ndarray | None = None
    """uint8 [len - 1, bytes of a hidden state]; only with the signal `full`."""


@dataclass(frozen=True)
class Vitals:
    """Engine health."""

    progress: int = 0
    """Changes whenever a token is generated or a request finishes."""
    num_unfinished: int = 0
    """Requests that have not finished."""
    failure: str | None = None
    """Why the engine has failed; None while it works."""


class Engine(Protocol):
    """An inference engine that keeps generating while weights are replaced between two of its steps."""

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield responses in finish order. Closing the iterator aborts what is unfinished."""
        ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Return, for each sequence, what the engine's signal holds."""
        ...

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Replace the weights between two steps and verify them; requests in flight continue with the new ones."""
        ...

    def serve_own_weights(self) -> None:
        """Serve the model as loaded from its folder, as version 0."""
        ...

    def vitals(self) -> Vitals:
        """Engine health; callable from any thread."""
        ...

    def shutdown(self) -> None:
        """Stop the engine and free its memory."""
        ...
