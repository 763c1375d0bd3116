"""How long an engine takes: decoding shared by all its sequences, prefill and weight loads in between.

Times are those of the event loop, real or simulated (`commands/plan/run.py`).
"""

import asyncio
import heapq
import itertools
import math
from bisect import bisect_right
from collections import deque
from typing import Annotated

from pydantic import Field

from cluster.waiting import now
from settings.engine import Positive, Section

Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]


EARLY_S = 2e-9
"""An event loop may call timers so much too early."""


class EngineRates(Section):
    """What one engine needs for its work."""

    step_s: PerSecond = 0.02
    """Seconds of a decode step with one sequence."""
    sequence_s: Duration = 0.0002
    """Seconds more for each further sequence in the step."""
    max_num_seqs: Positive = 128
    """Sequences decoded together; further ones wait."""
    prefill_tokens_per_s: PerSecond = 20_000.0
    """Tokens per second of prompts, and of scoring; nothing is decoded meanwhile."""
    call_s: Duration = 0.0
    """Seconds of a scoring call besides those of its tokens."""
    fetch_s: Duration = 0.0
    """Seconds from the publication of weights until an engine stops for them."""
    load_s: Duration = 0.2
    """Seconds of a weight update, without decoding."""


class _Sequence:
    """A sequence: it starts when there is a place, and ends when the common progress reaches `end`."""

    def __init__(self, num_tokens: int, number: int) -> None:
        self.num_tokens = num_tokens
        self.number = number
        self.start = self.end = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "_Sequence") -> bool:
        return (self.end, self.number) < (other.end, other.number)


class SimulatedDevice:
    """One engine's time. All running sequences progress at one rate: a token per decode step."""

    def __init__(self, rates: EngineRates) -> None:
        self._rates = rates
        self._running: list[_Sequence] = []  # a heap: the next to end first
        self._waiting: deque[_Sequence] = deque()
        self._numbers = itertools.count()
        self._progress = 0.0  # tokens of a sequence that has run all the time
        self._updated_s = 0.0
        self._free_s = 0.0  # until then nothing is decoded
        self._timer: asyncio.TimerHandle | None = None
        self._versions: list[tuple[float, int]] = [(0.0, 0)]  # with the progress at which each came

    async def decode(self, num_prompt_tokens: int, num_tokens: int) -> list[tuple[int, int]]:
        """Prefill and decode one sequence; returns (weight version, tokens) runs in token order."""
        sequence = _Sequence(num_tokens, next(self._numbers))
        self._waiting.append(sequence)
        self.occupy(num_prompt_tokens / self._rates.prefill_tokens_per_s)
        try:
            await sequence.done
        except asyncio.CancelledError:
            self._remove(sequence)
            raise
        return self._runs(sequence)

    async def score(self, num_tokens: int) -> None:
        """Prefill all tokens of a call, after those of earlier calls."""
        self.occupy(self._rates.call_s + num_tokens / self._rates.prefill_tokens_per_s)
        await asyncio.sleep(self._free_s - now())

    async def load(self, version: int) -> None:
        """Stop decoding for a weight update; tokens decoded afterwards are of `version`."""
        self.occupy(self._rates.load_s)
        self._versions.append((self._progress, version))
        await asyncio.sleep(self._free_s - now())

    def occupy(self, seconds: float) -> None:
        """Let nothing be decoded for some seconds more."""
        self._advance()
        self._free_s = max(self._free_s, now()) + seconds
        self._schedule()

    def _advance(self) -> None:
        """Bring the progress up to now, end what is complete, and start what waits."""
        until = now()
        since = max(self._updated_s, min(self._free_s, until))
        reached = self._progress
        if self._running:
            step_s = self._step_s()
            self._progress += (until - since) / step_s
            reached = self._progress + max(1e-6, EARLY_S / step_s)
        self._updated_s = until
        while self._running and self._running[0].end <= reached:
            done = heapq.heappop(self._running).done
            if not done.done():
                done.set_result(None)
        while self._waiting and len(self._running) < self._rates.max_num_seqs:
            sequence = self._waiting.popleft()
            sequence.start, sequence.end = self._progress, self._progress + sequence.num_tokens
            heapq.heappush(self._running, sequence)

    def _step_s(self) -> float:
        return self._rates.step_s + self._rates.sequence_s * (len(self._running) - 1)

    def _schedule(self) -> None:
        """Wake up when the next sequence ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            left_s = max(0.0, self._running[0].end - self._progress) * self._step_s()
            at = max(self._free_s, now()) + left_s
            self._timer = asyncio.get_running_loop().call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._advance()
        self._schedule()

    def _remove(self, sequence: _Sequence) -> None:
        """Take an aborted sequence out."""
        self._advance()
        if sequence in self._running:
            self._running.remove(sequence)
            heapq.heapify(self._running)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._advance()
        self._schedule()

    def _runs(self, sequence: _Sequence) -> list[tuple[int, int]]:
        """Versions of a complete sequence, with the tokens of each."""
        runs: list[tuple[int, int]] = []
        first = 0
        oldest = bisect_right(self._versions, sequence.start, key=lambda entry: entry[0]) - 1
        for index in range(oldest, len(self._versions)):
            is_newest = index + 1 == len(self._versions)
            end = math.inf if is_newest else self._versions[index + 1][0] - sequence.start
            last = sequence.num_tokens if end >= sequence.num_tokens else round(end)
            if last > first:
                runs.append((self._versions[index][1], last - first))
            first = max(first, last)
        return runs
