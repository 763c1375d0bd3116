"""Engines, learner ranks and prompts of the tests: the simulator of `commands/plan` with tables and with faults.

`SimulatedEngine` stands behind the real workers and takes the time of a `SimulatedDevice`; `FaultyLearner` is a
learner rank that writes down every call. They live in this process, in virtual time, or are Ray actors.
A prompt is one token: its place in the prompt order. With several teachers, places take the sources in turn.
"""

import asyncio
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.engine import (
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
    TokenScores,
    Vitals,
)
from actors.rollout_worker import RolloutWorker
from cluster.waiting import now
from commands.plan.local_pool import LocalActor, LocalRef
from commands.plan.timing import EngineRates, SimulatedDevice
from commands.plan.workers import LearnerRates, SimulatedLearner, SimulatedSlot, SimulatedStep
from records.checkpoints import WriteReport
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


async def end_process() -> None:
    """End the worker that calls this, as a crash does."""
    actor = LocalActor.inside.get()
    if actor is None:
        os._exit(1)
    actor.kill()
    await asyncio.sleep(NEVER_S)


@dataclass(frozen=True)
class EngineBehaviour:
    """What a simulated engine does. Responses have 2 to 19 tokens; all that run decode side by side."""

    token_s: float = 0.0025
    score_s: float = 0.002  # of a scoring call; they come one after the other
    load_s: float = 0.002
    failing_loads: int = 0  # so many loads raise before one works
    poison: frozenset[int] = frozenset()  # places of prompts that generate raises for
    cannot_score: frozenset[int] = frozenset()  # places of prompts that score raises for
    always_fails: bool = False  # generate and score raise
    failing_scores: int = 0  # so many scoring calls raise before they work
    answer: float = 0.0  # to the question of the replica check
    first_life: Path | None = None  # where it is marked that the first life is over: later ones have no faults
    is_wedged: bool = False  # answers, and makes no token
    kills: frozenset[int] = frozenset()  # places of prompts with which generate ends the process
    kills_scoring: frozenset[int] = frozenset()  # places of prompts with which score ends the process
    dies_after_note: bool = False  # the process ends between a note and its table
    scores: Path | None = None  # where scoring calls are written down
    aborts: Path | None = None  # where generations that were cut short are written down
    helper_s: int = 0  # so long a process lives that it starts and that is no child of it

    @property
    def rates(self) -> EngineRates:
        """The same as the simulator has it."""
        times = {"call_s": self.score_s, "load_s": self.load_s, "prefill_tokens_per_s": 1e12}
        return EngineRates(step_s=self.token_s, sequence_s=0.0, max_num_seqs=10_000, **times)


class SimulatedEngine:
    """An engine without a model."""

    def __init__(self, behaviour: EngineBehaviour, settings: EngineSettings) -> None:
        self._behaviour = behaviour
        if behaviour.first_life is not None and behaviour.first_life.exists():
            self._behaviour = EngineBehaviour(behaviour.token_s, behaviour.score_s)
        elif behaviour.first_life is not None:
            behaviour.first_life.touch()
        self._device = SimulatedDevice(behaviour.rates)
        self._num_loads = 0
        self._num_scores = 0
        if behaviour.helper_s:
            subprocess.run(["setsid", "sh", "-c", f"sleep {behaviour.helper_s} &"], check=True)

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield responses in finish order; their lengths come from the requests' seeds."""
        places = {request.prompt_token_ids[0] for request in requests}
        if self._behaviour.always_fails or places & self._behaviour.poison:
            raise ValueError("the engine rejects a prompt")
        if places & self._behaviour.kills:
            await asyncio.sleep(0.05)
            await end_process()
        if self._behaviour.is_wedged:
            await asyncio.sleep(NEVER_S)
        tasks = [asyncio.create_task(self._respond(request)) for request in requests]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            unfinished = sum(task.cancel() for task in tasks)
            if unfinished and self._behaviour.aborts is not None:
                append_row(self._behaviour.aborts, {"unfinished": unfinished})

    async def _respond(self, request: GenerationRequest) -> Generation:
        rng = np.random.default_rng(request.seed)
        tokens = rng.integers(1, 1000, int(rng.integers(2, 20))).tolist()
        runs = await self._device.decode(len(request.prompt_token_ids), len(tokens))
        return Generation(request.request_id, tokens, np.zeros(len(tokens), np.float32), runs, "stop")

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Return zeros after a while, the answer of `behaviour` to the question at once."""
        if [list(sequence) for sequence in sequences] == [QUESTION]:
            return [TokenScores(np.full(2, self._behaviour.answer, np.float32))]
        if self._behaviour.scores is not None:
            append_row(self._behaviour.scores, {"sequences": [list(sequence) for sequence in sequences]})
        places = {sequence[0] for sequence in sequences}
        if self._behaviour.is_wedged:
            await asyncio.sleep(NEVER_S)
        if places & self._behaviour.kills_scoring:
            await asyncio.sleep(0.05)
            await end_process()
        await self._device.score(sum(map(len, sequences)))
        self._num_scores += 1
        if self._num_scores <= self._behaviour.failing_scores:
            raise ValueError("the engine cannot score yet")
        if self._behaviour.always_fails or places & self._behaviour.cannot_score:
            raise ValueError("the teacher rejects a rollout")
        return [TokenScores(np.zeros(len(sequence) - 1, np.float32)) for sequence in sequences]

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Check the buckets and take the version."""
        check_buckets(manifest, await fetched(source))
        self._num_loads += 1
        if self._num_loads <= self._behaviour.failing_loads:
            raise ValueError("the engine cannot load")
        started = now()
        await self._device.load(manifest.version)
        zeros = dict.fromkeys(("fetch_s", "check_s", "pause_s", "verify_s", "golden_difference"), 0.0)
        took = {"load_s": now() - started, "bytes_fetched": manifest.total_bytes}
        return LoadReport(manifest.incarnation, manifest.version, **zeros, **took)

    def serve_own_weights(self) -> None:
        """Nothing to do."""

    def vitals(self) -> Vitals:
        """Progress all the time, unless the engine is wedged."""
        return Vitals(num_unfinished=1) if self._behaviour.is_wedged else Vitals(time.monotonic_ns())

    def shutdown(self) -> None:
        """Nothing to do."""


async def fetched(source: Any) -> Sequence[np.ndarray]:
    """The buckets of a source: in Ray's object store, or references within this process."""
    if isinstance(source.buckets[0], LocalRef):
        return [await ref for ref in source.buckets]
    return await asyncio.to_thread(source.fetch)


class WorkerCutOff(RolloutWorker):
    """A rollout worker whose process ends after the first parcel, before its table."""

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[Any]:
        """Yield one parcel."""
        async for item in super().generate(prompts, sampling):
            yield item
            await asyncio.sleep(0.2)  # until it is on its way
            await end_process()


@dataclass(frozen=True)
class LearnerBehaviour:
    """What a simulated learner does."""

    train_s: float = 0.005
    fails_at: int = -1  # the step that raises
    freezes_at: int = -1  # the step that never ends
    dies_at: int = -1  # the step in which the process ends
    skips_from: int = 1_000_000  # steps without a finite gradient
    vanishes_until: int = -1  # steps whose gradient moves nothing: those before it
    num_faults: int = 1_000_000  # so often in all lives of the learner
    has_full_disk: bool = False  # no checkpoint is written


LEARNER_METRICS = (
    *("reward/mean", "reward/abs_p95", "reward/frac_abs_gt_0.01", "kl/reverse", "kl/mismatch", "grad_norm"),
    *("loss", "lr", "importance/mean", "importance/capped_frac", "entropy", "truncated_frac"),
)


class FaultyLearner:
    """A rank of the simulated learner that is given tables, and writes down every call in `calls`."""

    def __init__(self, behaviour: LearnerBehaviour, calls: Path, signal: TeacherSignal = SAMPLED) -> None:
        rates = LearnerRates(step_s=behaviour.train_s, tokens_per_s=1e12, publish_s=0.0)
        self._learner = SimulatedLearner(rates, num_prompt_tokens=1)
        self._behaviour = behaviour
        self._calls = calls
        self._signal = signal

    async def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat(pid=os.getpid())

    async def fetch(self, *tables: pa.Table) -> None:
        """Nothing to do."""

    async def rendezvous(self) -> tuple[str, int]:
        """Any address."""
        return await self._learner.rendezvous()

    async def setup(self, address: str, port: int) -> None:
        """Nothing to do."""

    async def train_step(self, step: int, *tables: pa.Table, slots: Sequence[int]) -> SimulatedStep:
        """Take the time of a step; write down its slots, their staleness and their lengths."""
        faulty = {self._behaviour.fails_at, self._behaviour.freezes_at, self._behaviour.dies_at}
        if step in faulty and self._may_fail():
            if step == self._behaviour.fails_at:
                raise ValueError("the learner is broken")
            await (end_process() if step == self._behaviour.dies_at else asyncio.sleep(NEVER_S))
        given = [check_scored(table, self._signal) for table in tables]
        groups = [table.to_pylist() for table in tables_of_slots(given, slots)]
        sizes = dict(zip(slots, map(size_of, groups), strict=True))
        done = await self._learner.train_step(step, sizes, slots=slots)
        rows = [row for group in groups for row in group]
        staleness = [step - run["version"] for row in rows for run in row["weight_versions"]]
        lengths = [len(row["response_token_ids"]) for row in rows]
        self._note("train_step", step=step, slots=[r["slot"] for r in rows], staleness=staleness, lengths=lengths)
        metrics = dict.fromkeys(LEARNER_METRICS, 0.0) | done.metrics
        was_skipped, is_vanishing = step >= self._behaviour.skips_from, step < self._behaviour.vanishes_until
        return replace(done, metrics=metrics, was_skipped=was_skipped, is_vanishing=is_vanishing)

    def _may_fail(self) -> bool:
        faults = self._calls.with_name("faults.jsonl")
        append_row(faults, {})
        return len(faults.read_text().splitlines()) <= self._behaviour.num_faults

    async def publish(self, incarnation: int, version: int) -> AsyncIterator[np.ndarray | WeightManifest]:
        """Yield one bucket and its manifest."""
        bucket = np.full(64, version % 256, np.uint8)
        yield bucket
        yield WeightManifest(incarnation, version, "float32", (), (64,), (checksum(bucket),), (1, 2), (0.0,))

    async def begin_checkpoint(self, folder: str) -> None:
        """Write a small file."""
        self._note("save_checkpoint", path=folder.removesuffix(".tmp"))
        await self._learner.begin_checkpoint(folder)

    async def written_checkpoint(self) -> WriteReport:
        """It is written, unless the disk is full."""
        written = await self._learner.written_checkpoint()
        failure = "OSError: No space left on device" if self._behaviour.has_full_disk else None
        return replace(written, failure=failure)

    async def load_checkpoint(self, path: str) -> float:
        """Check that it is there."""
        return await self._learner.load_checkpoint(path)

    async def export(self, path: str) -> None:
        """Write the call down."""
        self._note("export", path=path)

    async def shutdown(self) -> None:
        """Nothing to do."""

    def _note(self, call: str, **details: Any) -> None:
        append_row(self._calls, {"call": call, **details})


def size_of(rows: Sequence[dict[str, Any]]) -> SimulatedSlot:
    """What the simulator knows of a slot."""
    runs = tuple((run["version"], run["num_tokens"]) for row in rows for run in row["weight_versions"])
    return SimulatedSlot(runs, tuple(len(row["response_token_ids"]) for row in rows))


class PlacedPrompts:
    """A prompt source whose prompts are their places in the order: `p0`, `p1`, ..."""

    def __init__(self, config: RunConfig) -> None:
        self._num_samples = config.num_samples_per_prompt
        self.num_slots = config.max_steps * config.batch_size
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
        self.replacements[slot] = max(self.replacements.values(), default=self.num_slots - 1) + 1
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
