"""Prints the log of a Ray job as it comes, until the job ends, over connections that break.

Each connection brings the whole log again; what was printed is left out.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TextIO

import aiohttp

from commands.submit.request import UnreachableError

SILENCE_S = 15.0
"""Silence after which a connection is looked after: does the jobs API still answer, has the job ended?"""
QUIET_S = 300.0
"""Silence after which a connection is made anew: something on the way may have forgotten it."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
REASON_LENGTH = 200
GIVE_UP_S = 600.0
"""Maximum time for which the jobs API may be away."""


class LogPrinter:
    """Prints what is new of a text that begins anew with each connection."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.num_printed = self._num_seen = 0

    def begin(self) -> None:
        """The text comes from its first character again."""
        self._num_seen = 0

    def add(self, text: str) -> None:
        """The next part of the text."""
        new = text[max(0, self.num_printed - self._num_seen) :]
        self._num_seen += len(text)
        self.num_printed = max(self.num_printed, self._num_seen)
        if new:
            self._out.write(new)
            self._out.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LogFollower:
    """Follows one job."""

    def __init__(
        self,
        tail: Callable[[], AsyncIterator[str]],
        look: Callable[[], Any],
        *,
        has_ended: Callable[[Any], bool],
        out: TextIO | None = None,
        say: Callable[[str], object] = _say,
        give_up_s: float = GIVE_UP_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """`tail` yields the log from its start, `look` the job's state; UnreachableError if there is no answer."""
        self._tail, self._look, self._has_ended = tail, look, has_ended
        self._printer = LogPrinter(out or sys.stdout)
        self._say = say
        self._give_up_s, self._first_pause_s = give_up_s, first_pause_s

    async def run(self) -> Any:
        """The job's last state; UnreachableError if there was no answer for too long."""
        pause_s, away_since = self._first_pause_s, None
        while True:
            num_before = self._printer.num_printed
            reason = await self._print_or_reason()
            try:
                job = await asyncio.to_thread(self._look)
                if self._has_ended(job):
                    return job
                away_since = None
            except UnreachableError as error:
                reason = str(error)
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > self._give_up_s:
                    raise UnreachableError(f"no answer for {self._give_up_s:g} s: {reason}") from error
            if reason is None:
                continue
            if self._printer.num_printed > num_before:
                pause_s = self._first_pause_s
            self._say(f"{reason}; the log is asked for again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _print_or_reason(self) -> str | None:
        """Print what one connection brings; why it ended, or None if it was only quiet for long."""
        try:
            return None if await self._print() else "the log broke off"
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except (UnreachableError, RuntimeError, aiohttp.ClientError, OSError) as error:
            return " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__

    async def _print(self) -> bool:
        """Print what one connection brings; True if it was left because nothing came for long."""
        self._printer.begin()
        tail = aiter(self._tail())
        last_word = time.monotonic()
        coming = asyncio.ensure_future(anext(tail, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=SILENCE_S)
                if done:
                    if (text := coming.result()) is None:
                        return False
                    self._printer.add(text)
                    last_word = time.monotonic()
                    coming = asyncio.ensure_future(anext(tail, None))
                elif self._has_ended(await asyncio.to_thread(self._look)):
                    return False
                elif time.monotonic() - last_word > QUIET_S:
                    return True
        finally:
            coming.cancel()
            await asyncio.wait({coming})
