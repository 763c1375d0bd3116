"""The actors of `benchmarks/data_plane.py`: a run's workers on an engine with ready answers, and a learner."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.engine import Generation, GenerationRequest, Sampling, TokenScores, Vitals
from actors.rollout_worker import RolloutWorker
from transport.batches import TeacherSignal
from transport.notes import LoadReport
from transport.stop_tokens import StopTokens
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest

STOPS = StopTokens(student_ids=(1,), teacher_ids=(1,))
VOCAB_SIZE = 4096


class ReadyEngine:
    """Answers at once, always the same: random tokens, log-probs and scores, made when it is opened."""

    def __init__(self, prompt_tokens: int, response_tokens: int, signal: TeacherSignal) -> None:
        rng, length = np.random.default_rng(0), prompt_tokens + response_tokens - 1
        self._token_ids: list[int] = rng.integers(2, VOCAB_SIZE, response_tokens).tolist()
        self._log_probs = -rng.gamma(2.0, 1.5, response_tokens).astype(np.float32)
        log_probs = -rng.gamma(2.0, 1.5, length).astype(np.float32)
        self._scores = TokenScores(log_probs)
        if signal.kind == "topk":
            ids = rng.integers(0, VOCAB_SIZE, (length, signal.k)).astype(np.int32)
            values = -rng.gamma(2.0, 1.5, (length, signal.k)).astype(np.float32)
            self._scores = TokenScores(log_probs, ids, values)

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield all responses at once."""
        runs = [(0, len(self._token_ids))]
        for request in requests:
            yield Generation(request.request_id, self._token_ids, self._log_probs, runs, "length")

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        """The same scores for every sequence."""
        return [self._scores] * len(sequences)

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """No weights are loaded here."""
        raise NotImplementedError

    def serve_own_weights(self) -> None:
        """It always serves."""

    def vitals(self) -> Vitals:
        """It is well."""
        return Vitals()

    def shutdown(self) -> None:
        """It holds nothing."""


class TimedRolloutWorker(RolloutWorker):
    """Adds up the time that it takes to make the items of its streams; what Ray does with them is not in it."""

    build_s = 0.0

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[Any]:
        """As the worker."""
        items = super().generate(prompts, sampling)
        while True:
            start = time.perf_counter()
            item = await anext(items, None)
            self.build_s += time.perf_counter() - start
            if item is None:
                return
            yield item

    async def taken_s(self) -> float:
        """Seconds since the last call of this."""
        seconds, self.build_s = self.build_s, 0.0
        return seconds


class Collator:
    """A learner's rank that only collates."""

    def __init__(self, signal: TeacherSignal) -> None:
        import torch

        torch.set_num_threads(1)
        self._signal = signal

    async def fetch(self, *tables: pa.Table) -> None:
        """Do nothing: the call has brought the tables."""

    async def collate(self, *tables: pa.Table) -> float:
        """Make micro-batches as a rank does; returns the seconds it took."""
        from learner.collate import collate

        start = time.perf_counter()
        collate(tables, stop_mode="raw", stops=STOPS, max_tokens=8192, signal=self._signal)
        return time.perf_counter() - start

    async def in_shared_memory(self, *tables: pa.Table) -> float:
        """Share of the tables' bytes that lie in the object store's memory: they were not copied on arrival."""
        with open("/proc/self/maps", encoding="ascii") as file:
            spans = [line.split()[0].split("-") for line in file if "plasma" in line]
        ranges = [(int(start, 16), int(end, 16)) for start, end in spans]
        found = total = 0
        for buffer in (buffer for table in tables for buffer in _buffers(table)):
            total += buffer.size
            found += buffer.size * any(start <= buffer.address < end for start, end in ranges)
        return found / total


class ArrayWorker:
    """The same hops with bare arrays: one object of flat columns, no schema, no checks, no notes."""

    async def make(self, num_responses: int, response_tokens: int, prompt_tokens: int) -> dict[str, np.ndarray]:
        """What a rollout table holds per token."""
        tokens = num_responses * response_tokens
        return {
            "prompt": np.ones(num_responses * prompt_tokens, np.int32),
            "response": np.ones(tokens, np.int32),
            "log_probs": np.ones(tokens, np.float32),
        }

    async def score(self, arrays: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
        """Add what a teacher adds."""
        tokens = len(arrays["response"])
        more = {"target": arrays["response"].copy(), "teacher": np.ones(tokens, np.float32)}
        if k:
            more |= {"ids": np.ones((tokens, k), np.int32), "values": np.ones((tokens, k), np.float32)}
        return arrays | more

    async def read(self, arrays: dict[str, np.ndarray]) -> float:
        """Read every byte."""
        return float(sum(array.sum() for array in arrays.values()))


def _buffers(table: pa.Table) -> list[Any]:
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    return [buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None]
