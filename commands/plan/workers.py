"""Workers of a simulated run: they take the time of engines, and pass sizes on where real ones pass tables.

The controller cannot tell the difference: they are called as rollout workers, teachers and learner ranks are.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.waiting import now
from commands.plan.timing import Duration, EngineRates, PerSecond, SimulatedDevice
from records.checkpoints import WriteReport, record_of
from settings.engine import Section
from transport.notes import EndOfStream, Heartbeat, Parcel, RolloutNote, ScoreNote
from transport.weights import WeightManifest

CHECKPOINT_NAME, CHECKPOINT = "state.txt", b"simulated"
"""What a simulated learner saves."""


class LearnerRates(Section):
    """What the learner needs for a step."""

    step_s: Duration = 0.5
    """Seconds of a step besides those of its tokens, with any number of ranks."""
    tokens_per_s: PerSecond = 20_000.0
    """Tokens, prompts included, that one rank trains per second; the rank with the most tokens ends last."""
    publish_s: Duration = 0.1
    """Seconds from the end of a step until its weights are published."""


@dataclass(frozen=True)
class SlotRequest:
    """A slot's group: tokens of its prompt and of each response to come."""

    slot: int
    attempt: int
    num_prompt_tokens: int
    response_lengths: tuple[int, ...]
    source: str = "simulated"


@dataclass(frozen=True)
class SimulatedSlot:
    """Stands for a slot's rows: version runs of all its responses."""

    runs: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]


Parceled = dict[int, SimulatedSlot]
"""Stands for a table: by slot."""


@dataclass(frozen=True)
class LoadedWeights:
    """A completed load; its parts are not told apart."""

    incarnation: int
    version: int
    load_s: float
    fetch_s: float = 0.0
    check_s: float = 0.0
    pause_s: float = 0.0
    verify_s: float = 0.0
    bytes_fetched: int = 0
    golden_difference: float = 0.0


class SimulatedWorker:
    """What all of them answer."""

    def __init__(self, rates: EngineRates, *, start_s: float = 0.0) -> None:
        self._rates = rates
        self._start_s = start_s

    async def start(self) -> float:
        """Take the time of a start."""
        await asyncio.sleep(self._start_s)
        self._device = SimulatedDevice(self._rates)
        return self._start_s

    async def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat()

    async def shutdown(self) -> None:
        """Nothing to do."""


class SimulatedRolloutWorker(SimulatedWorker):
    """A student engine."""

    async def load_weights(self, manifest: WeightManifest, source: Any) -> LoadedWeights:
        """Take the time of a weight update."""
        await asyncio.sleep(self._rates.fetch_s)
        started = now()
        await self._device.load(manifest.version)
        return LoadedWeights(manifest.incarnation, manifest.version, now() - started)

    async def generate(self, requests: Sequence[SlotRequest], sampling: Any) -> AsyncGenerator[Any, None]:
        """Yield slots as their groups are complete: a `Parcel`, then its `Parceled`."""
        complete: asyncio.Queue[tuple[SlotRequest, list[list[tuple[int, int]]]]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._sample(request, complete)) for request in requests]
        try:
            left = len(requests)
            while left:
                groups = [await complete.get()]
                while not complete.empty():
                    groups.append(complete.get_nowait())
                left -= len(groups)
                yield Parcel(tuple(_note(request, runs) for request, runs in groups))
                yield {request.slot: _slot(request, runs) for request, runs in groups}
            yield EndOfStream(num_slots=len(requests))
        finally:
            for task in tasks:
                task.cancel()

    async def _sample(self, request: SlotRequest, complete: "asyncio.Queue[Any]") -> None:
        decoding = (self._device.decode(request.num_prompt_tokens, num) for num in request.response_lengths)
        complete.put_nowait((request, await asyncio.gather(*decoding)))


class SimulatedTeacher(SimulatedWorker):
    """A teacher, or the reference model: slots must be those of rollout workers of this module."""

    def __init__(self, rates: EngineRates, *, num_prompt_tokens: int, start_s: float = 0.0) -> None:
        super().__init__(rates, start_s=start_s)
        self._num_prompt_tokens = num_prompt_tokens

    async def score(self, *tables: Parceled, parcels: Sequence[Sequence[int]]) -> tuple[Any, ...]:
        """Take the time of a scoring call."""
        found = {slot: value for table in tables for slot, value in table.items()}
        started = now()
        parts = [{slot: found[slot] for slot in parcel} for parcel in parcels]
        sizes = [
            sum(each.lengths) + len(each.lengths) * self._num_prompt_tokens for p in parts for each in p.values()
        ]
        await self._device.score(sum(sizes))
        return ScoreNote(sum(sizes), now() - started), *parts


@dataclass(frozen=True)
class SimulatedStep:
    """What the learner reports of a step."""

    metrics: dict[str, float]
    was_skipped: bool = False
    is_vanishing: bool = False


class SimulatedLearner:
    """All ranks of the learner, as one worker."""

    def __init__(self, rates: LearnerRates, *, num_prompt_tokens: int, num_ranks: int = 1) -> None:
        self._rates = rates
        self._num_prompt_tokens = num_prompt_tokens
        self._num_ranks = num_ranks

    async def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat()

    async def fetch(self, *tables: Parceled) -> None:
        """Nothing to do."""

    async def rendezvous(self) -> tuple[str, int]:
        """Any address."""
        return "simulated", 1

    async def setup(self, address: str, port: int) -> None:
        """Nothing to do."""

    async def train_step(self, step: int, *tables: Parceled, slots: Sequence[int]) -> SimulatedStep:
        """Take the time of a step and measure the staleness of its tokens."""
        found = {slot: value for table in tables for slot, value in table.items()}
        batch = [found[slot] for slot in slots]
        lengths = [length for each in batch for length in each.lengths]
        num_tokens = sum(lengths)
        stale = [(step - version, num) for each in batch for version, num in each.runs]
        sizes = [sum(each.lengths) + len(each.lengths) * self._num_prompt_tokens for each in batch]
        await asyncio.sleep(self._rates.step_s + self._largest_share(sizes) / self._rates.tokens_per_s)
        metrics: dict[str, float] = {
            "tokens_trained": num_tokens,
            "staleness/max": max(lag for lag, _ in stale),
            "staleness/mean": sum(lag * num for lag, num in stale) / num_tokens,
            "response_length/mean": num_tokens / len(lengths),
            "response_length/log_mean": float(np.mean(np.log(lengths))),
            "response_length/log_std": float(np.std(np.log(lengths))),
        }
        return SimulatedStep(metrics)

    def _largest_share(self, sizes: Sequence[int]) -> int:
        """Tokens of the rank with the most, split as `LearnerGroup` splits a batch."""
        tokens = [0] * self._num_ranks
        for size in sorted(sizes, reverse=True):
            tokens[tokens.index(min(tokens))] += size
        return max(tokens)

    async def publish(self, incarnation: int, version: int) -> AsyncGenerator[Any, None]:
        """Take the time of publishing; yields a manifest without weights."""
        await asyncio.sleep(self._rates.publish_s)
        yield WeightManifest(incarnation, version, "bfloat16", (), (), (), (), ())

    async def begin_checkpoint(self, folder: str) -> None:
        """Write a small file."""
        (Path(folder) / CHECKPOINT_NAME).write_bytes(CHECKPOINT)

    async def written_checkpoint(self) -> WriteReport:
        """It is written."""
        return WriteReport({CHECKPOINT_NAME: record_of([CHECKPOINT])}, 0.0)

    async def load_checkpoint(self, path: str) -> float:
        """Check that it is there."""
        assert (Path(path) / CHECKPOINT_NAME).read_bytes() == CHECKPOINT
        return 0.0

    async def export(self, path: str) -> None:
        """Nothing to do."""

    async def shutdown(self) -> None:
        """Nothing to do."""


def _note(request: SlotRequest, runs: list[list[tuple[int, int]]]) -> RolloutNote:
    versions = [version for each in runs for version, _ in each]
    total = sum(request.response_lengths)
    return RolloutNote(
        slot=request.slot,
        attempt=request.attempt,
        uids=(f"{request.slot}-0-simulated-0",),
        num_tokens=total + len(request.response_lengths) * request.num_prompt_tokens,
        num_response_tokens=total,
        num_truncated=0,
        oldest_version=min(versions),
        newest_version=max(versions),
        source=request.source,
    )


def _slot(request: SlotRequest, runs: list[list[tuple[int, int]]]) -> SimulatedSlot:
    return SimulatedSlot(tuple(run for each in runs for run in each), request.response_lengths)
