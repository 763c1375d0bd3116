"""Engines and a learner that only sleep and count, to see the controller with real workers on real Ray.

`SimulatedEngine` stands behind the real `RolloutWorker` and `TeacherWorker`; `SimulatedLearner` takes the
place of a learner rank and writes down every call. A prompt is one token: its place in the prompt order.
With several teachers, places take the sources in turn.
"""

import asyncio
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.engine import (
    Engine,
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
    TokenScores,
    Vitals,
)
from actors.rollout_worker import RolloutWorker
from records.checkpoints import WriteReport, record_of
from records.files import append_row
from settings.engine import EngineConfig
from settings.run import RunConfig
from settings.teachers import role_of_source
from transport.batches import PROMPT_SCHEMA, SAMPLED, TeacherSignal, check_scored
from transport.notes import Heartbeat, LoadReport
from transport.parcels import tables_of_slots
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest, check_buckets, checksum

SAMPLING = Sampling(max_tokens=20)
SETTINGS = EngineSettings("simulated", "float32", "cpu", 0, 1000, (0,), EngineConfig())
NEVER_S = 3600.0
QUESTION = [1, 2, 3]
"""A sequence whose scores are known."""


@dataclass(frozen=True)
class EngineBehaviour:
    """What a simulated engine does; seconds are of one response, one scoring call, one load."""

    fastest_s: float = 0.001
    slowest_s: float = 0.05
    score_s: float = 0.002
    load_s: float = 0.002
    failing_loads: int = 0  # so many loads raise before one works
    poison: frozenset[int] = frozenset()  # places of prompts that generate raises for
    cannot_score: frozenset[int] = frozenset()  # places of prompts that score raises for
    always_fails: bool = False  # generate and score raise
    failing_scores: int = 0  # so many scoring calls raise before they work
    blocks: bool = False  # score blocks the whole process while it sleeps
    answer: float = 0.0  # to the replica check
    first_life: Path | None = None  # where it is marked that the first life is over: later ones have no faults
    is_wedged: bool = False  # answers, and makes no token
    kills: frozenset[int] = frozenset()  # places of prompts with which generate ends the process
    kills_scoring: frozenset[int] = frozenset()  # places of prompts with which score ends the process
    dies_after_note: bool = False  # the process ends between a note and its table
    scores: Path | None = None  # where scoring calls are written down
    aborts: Path | None = None  # where generations that were cut short are written down
    helper_s: int = 0  # so long a process lives that it starts and that is no child of it


class SimulatedEngine:
    """An engine without a model. A response holds the version of its start first, then that of its end."""

    def __init__(self, behaviour: EngineBehaviour, settings: EngineSettings) -> None:
        self._behaviour = behaviour
        if behaviour.first_life is not None and behaviour.first_life.exists():
            self._behaviour = EngineBehaviour(behaviour.fastest_s, behaviour.slowest_s, behaviour.score_s)
        elif behaviour.first_life is not None:
            behaviour.first_life.touch()
        self._version = 0
        self._num_loads = 0
        self._num_scores = 0
        if behaviour.helper_s:
            subprocess.run(["setsid", "sh", "-c", f"sleep {behaviour.helper_s} &"], check=True)

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield responses in finish order; sleeps and lengths come from the requests' seeds."""
        if self._behaviour.always_fails or any(r.prompt_token_ids[0] in self._behaviour.poison for r in requests):
            raise ValueError("the engine rejects a prompt")
        if any(r.prompt_token_ids[0] in self._behaviour.kills for r in requests):
            await asyncio.sleep(0.05)
            os._exit(1)
        if self._behaviour.is_wedged:
            await asyncio.sleep(NEVER_S)
        if self._behaviour.slowest_s == 0:
            for request in requests:
                yield self._respond(request, np.random.default_rng(request.seed), self._version)
            return
        tasks = [asyncio.create_task(self._sample(request)) for request in requests]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            unfinished = sum(task.cancel() for task in tasks)
            if unfinished and self._behaviour.aborts is not None:
                append_row(self._behaviour.aborts, {"unfinished": unfinished})

    async def _sample(self, request: GenerationRequest) -> Generation:
        first, rng = self._version, np.random.default_rng(request.seed)
        fastest_s, slowest_s = self._behaviour.fastest_s, self._behaviour.slowest_s
        await asyncio.sleep(fastest_s * (slowest_s / fastest_s) ** rng.random())
        return self._respond(request, rng, first)

    def _respond(self, request: GenerationRequest, rng: np.random.Generator, first: int) -> Generation:
        length = int(rng.integers(2, 20))
        half = length // 2
        runs = [(first, half), (self._version, length - half)] if first != self._version else [(first, length)]
        tokens = rng.integers(1, 1000, length).tolist()
        return Generation(request.request_id, tokens, np.zeros(length, np.float32), runs, "stop")

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Return zeros after a while, the answer of `behaviour` to the question at once."""
        if [list(sequence) for sequence in sequences] == [QUESTION]:
            return [TokenScores(np.full(2, self._behaviour.answer, np.float32))]
        if self._behaviour.scores is not None:
            append_row(self._behaviour.scores, {"sequences": [list(sequence) for sequence in sequences]})
        if self._behaviour.is_wedged:
            await asyncio.sleep(NEVER_S)
        if any(s[0] in self._behaviour.kills_scoring for s in sequences):
            await asyncio.sleep(0.05)
            os._exit(1)
        if self._behaviour.blocks:
            time.sleep(self._behaviour.score_s)
        await asyncio.sleep(self._behaviour.score_s)
        self._num_scores += 1
        if self._num_scores <= self._behaviour.failing_scores:
            raise ValueError("the engine cannot score yet")
        if self._behaviour.always_fails or any(s[0] in self._behaviour.cannot_score for s in sequences):
            raise ValueError("the teacher rejects a rollout")
        return [TokenScores(np.zeros(len(sequence) - 1, np.float32)) for sequence in sequences]

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Check the buckets and take the version."""
        check_buckets(manifest, await asyncio.to_thread(source.fetch))
        self._num_loads += 1
        if self._num_loads <= self._behaviour.failing_loads:
            raise ValueError("the engine cannot load")
        await asyncio.sleep(self._behaviour.load_s)
        self._version = manifest.version
        seconds = dict.fromkeys(("fetch_s", "check_s", "pause_s", "load_s", "verify_s", "golden_difference"), 0.0)
        identity = (manifest.incarnation, manifest.version)
        return LoadReport(*identity, bytes_fetched=manifest.total_bytes, **seconds)

    def serve_own_weights(self) -> None:
        """Nothing to do."""

    def vitals(self) -> Vitals:
        """Progress all the time, unless the engine is wedged."""
        return Vitals(num_unfinished=1) if self._behaviour.is_wedged else Vitals(time.monotonic_ns())

    def shutdown(self) -> None:
        """Nothing to do."""


class WorkerCutOff:
    """A rollout worker whose process ends after the first parcel, before its table."""

    def __init__(self, settings: EngineSettings, open_engine: Callable[[EngineSettings], Engine]) -> None:
        self._worker = RolloutWorker(settings, open_engine)

    async def start(self) -> float:
        """As the worker."""
        return await self._worker.start()

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """As the worker."""
        return await self._worker.load_weights(manifest, source)

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[Any]:
        """Yield one parcel."""
        async for item in self._worker.generate(prompts, sampling):
            yield item
            await asyncio.sleep(0.2)  # until it is on its way
            os._exit(1)

    async def ping(self) -> Heartbeat:
        """As the worker."""
        return await self._worker.ping()

    async def shutdown(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class LearnerBehaviour:
    """What a simulated learner does."""

    train_s: float = 0.005
    fails_at: int = -1  # the step that raises
    freezes_at: int = -1  # the step that never ends
    dies_at: int = -1  # the step in which the process ends
    skips_from: int = 1_000_000  # steps without a finite gradient
    num_faults: int = 1_000_000  # so often in all lives of the learner
    has_full_disk: bool = False  # no checkpoint is written


@dataclass(frozen=True)
class SimulatedStep:
    """What a rank returns of a step."""

    metrics: dict[str, float]
    was_skipped: bool = False


LEARNER_METRICS = (
    *("reward/mean", "reward/abs_p95", "reward/frac_abs_gt_0.01", "kl/reverse", "kl/mismatch", "grad_norm"),
    *("loss", "lr", "importance/mean", "importance/capped_frac", "entropy", "truncated_frac"),
)


class SimulatedLearner:
    """A learner rank that trains nothing and writes down every call in `calls`."""

    def __init__(self, behaviour: LearnerBehaviour, calls: Path, signal: TeacherSignal = SAMPLED) -> None:
        self._behaviour = behaviour
        self._calls = calls
        self._signal = signal

    def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat(pid=os.getpid())

    def fetch(self, *tables: pa.Table) -> None:
        """Nothing to do."""

    def rendezvous(self) -> tuple[str, int]:
        """Any address."""
        return "127.0.0.1", 1

    def setup(self, address: str, port: int) -> None:
        """Nothing to do."""

    def train_step(self, step: int, *tables: pa.Table, slots: Sequence[int]) -> SimulatedStep:
        """Sleep; report the staleness of the rollouts and write down their slots."""
        faulty = {self._behaviour.fails_at, self._behaviour.freezes_at, self._behaviour.dies_at}
        if step in faulty and self._may_fail():
            if step == self._behaviour.fails_at:
                raise ValueError("the learner is broken")
            if step == self._behaviour.dies_at:
                os._exit(1)
            time.sleep(NEVER_S)
        time.sleep(self._behaviour.train_s)
        given = [check_scored(table, self._signal) for table in tables]
        rows = [row for table in tables_of_slots(given, slots) for row in table.to_pylist()]
        staleness = [step - run["version"] for row in rows for run in row["weight_versions"]]
        lengths = [len(row["response_token_ids"]) for row in rows]
        slots = [row["slot"] for row in rows]
        self._note("train_step", step=step, slots=slots, staleness=staleness, lengths=lengths)
        metrics = dict.fromkeys(LEARNER_METRICS, 0.0) | {
            "tokens_trained": sum(lengths),
            "staleness/max": max(staleness),
            "staleness/mean": sum(staleness) / len(staleness),
            "response_length/mean": sum(lengths) / len(lengths),
        }
        return SimulatedStep(metrics, was_skipped=step >= self._behaviour.skips_from)

    def _may_fail(self) -> bool:
        faults = self._calls.with_name("faults.jsonl")
        append_row(faults, {})
        return len(faults.read_text().splitlines()) <= self._behaviour.num_faults

    def publish(self, incarnation: int, version: int) -> Iterator[np.ndarray | WeightManifest]:
        """Yield one bucket and its manifest."""
        bucket = np.full(64, version % 256, np.uint8)
        yield bucket
        yield WeightManifest(incarnation, version, "float32", (), (64,), (checksum(bucket),), (1, 2), (0.0,))

    def begin_checkpoint(self, folder: str) -> None:
        """Write a small file."""
        self._note("save_checkpoint", path=folder.removesuffix(".tmp"))
        (Path(folder) / "state.txt").write_text("simulated")

    def written_checkpoint(self) -> WriteReport:
        """It is written."""
        failure = "OSError: No space left on device" if self._behaviour.has_full_disk else None
        return WriteReport({"state.txt": record_of([b"simulated"])}, 0.0, failure)

    def load_checkpoint(self, path: str) -> float:
        """Check that it is there."""
        assert (Path(path) / "state.txt").read_text() == "simulated"
        return 0.0

    def export(self, path: str) -> None:
        """Write the call down."""
        self._note("export", path=path)

    def shutdown(self) -> None:
        """Nothing to do."""

    def _note(self, call: str, **details: Any) -> None:
        append_row(self._calls, {"call": call, **details})


class SimulatedPrompts:
    """A prompt source whose prompts are their places in the order: `p0`, `p1`, ..."""

    def __init__(self, config: RunConfig) -> None:
        self._num_samples = config.num_samples_per_prompt
        self._num_slots = config.max_steps * config.batch_size
        self._sources = sorted(role_of_source(config)) or ["simulated"]
        self.replacements: dict[int, int] = {}
        self.issued: list[int] = []  # slots, as often as they were issued
        self.attempts: defaultdict[int, list[int]] = defaultdict(list)  # of each slot, as it was issued

    def requests_for(self, slots: Sequence[int], attempts: Sequence[int]) -> pa.Table:
        """Rows of `num_samples` responses per slot."""
        self.issued += slots
        for slot, attempt in zip(slots, attempts, strict=True):
            self.attempts[slot].append(attempt)
        rows = [
            self._request(slot, attempt, sample)
            for slot, attempt in zip(slots, attempts, strict=True)
            for sample in range(self._num_samples)
        ]
        return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)

    def give_up(self, slot: int) -> str:
        """Let the slot take the first place that no slot has."""
        given_up = f"p{self.replacements.get(slot, slot)}"
        self.replacements[slot] = max(self.replacements.values(), default=self._num_slots - 1) + 1
        return given_up

    def _request(self, slot: int, attempt: int, sample: int) -> dict[str, Any]:
        place = self.replacements.get(slot, slot)
        return {
            "uid": f"{slot}-0-p{place}-{sample}",
            "slot": slot,
            "attempt": attempt,
            "prompt_id": f"p{place}",
            "sample": sample,
            "seed": 1000 * place + sample,
            "source": self._sources[place % len(self._sources)],
            "answer": "1",
            "prompt_token_ids": [place],
        }
