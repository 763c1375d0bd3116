"""Standard output and standard error of a command that must outlive them: writing neither raises nor waits.

    print, log lines, live view --> Output --> a queue --> a thread of the file --> terminal, pipe, log file

A terminal that was closed, a pipe without a reader, a full disk: from the first failure on the stream is switched
off, for what writes to its descriptor past Python as well. A reader that stopped reading costs the lines that the
queue cannot take. What happened is told to `on_trouble`, so that it can be noted elsewhere.
"""

import errno
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import StreamHandler, getLogger
from typing import Any, TextIO, cast

MAX_QUEUED_BYTES = 1 << 20
"""Bytes that may wait to be written."""

LAST_WAIT_S = 2.0
"""At the end a file that takes nothing is waited for so long."""

Tell = Callable[[str, str, str], object]
"""Is told an event's name (`output_failed`, `output_stalled`), the stream's name, and the reason."""


class Output:
    """A text stream in the place of another one, whose other attributes it has."""

    def __init__(
        self, stream: TextIO, writer: "Writer | None" = None, *, max_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        """`writer` is that of another stream to the same file, so that lines keep their order."""
        self._stream = stream
        self._file = file_of(stream)
        self.writer = writer
        if writer is None and self._file is not None:
            self.writer = Writer(self._file, max_bytes=max_bytes)
        self.name = {1: "stdout", 2: "stderr"}.get(-1 if self._file is None else self._file, "output")
        self._failure: Exception | None = None
        self._tell: list[Tell] = []
        if self.writer is not None:
            self.writer.streams.append(self)

    def write(self, text: str) -> int:
        """Take a text; returns its length whatever becomes of it."""
        if self.writer is not None and self._file is not None:
            encoding = self._stream.encoding or "utf-8"
            self.writer.put(self._file, text.encode(encoding, "backslashreplace"))
        elif self._failure is None:  # no file of the system: nothing to wait for
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
            except (OSError, ValueError) as error:
                self.failed(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Take several."""
        self.write("".join(lines))

    def flush(self) -> None:
        """There is nothing to do: the thread writes what there is at once."""

    def on_trouble(self, tell: Tell) -> None:
        """Call `tell` with what goes wrong, from whatever thread; at once if it has already."""
        self._tell.append(tell)
        if self._failure is not None:
            tell("output_failed", self.name, _reason(self._failure))

    def failed(self, error: Exception) -> None:
        """From now on nothing is written."""
        self._failure = error
        if self._file in (1, 2):
            silence(self._file)
        for tell in self._tell:
            tell("output_failed", self.name, _reason(error))

    def stalled(self) -> None:
        """What does not fit into the queue is dropped for now."""
        for tell in self._tell:
            tell("output_stalled", self.name, "its reader takes nothing; lines are left out")

    def __getattr__(self, name: str) -> Any:
        """What the stream itself has: `encoding`, `isatty`, `fileno`, ..."""
        return getattr(self._stream, name)


class Writer:
    """Writes to one file, from a thread: `put` never waits."""

    def __init__(self, file: int, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.file = file
        self.streams: list[Output] = []
        self._max_bytes = max_bytes
        self._queue: deque[tuple[int, bytes]] = deque()
        self._size = self._num_written = 0
        self._is_stalled = self._has_failed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="output", daemon=True).start()

    def put(self, file: int, text: bytes) -> None:
        """Queue a text for a descriptor of the file, or drop it if the queue is full."""
        with self._changed:
            if self._has_failed:
                return
            is_first = self._size > self._max_bytes and not self._is_stalled
            self._is_stalled |= is_first
            if self._size <= self._max_bytes:
                self._queue.append((file, text))
                self._size += len(text)
                self._changed.notify_all()
        if is_first:
            for stream in self.streams:
                stream.stalled()

    def finish(self, timeout_s: float = LAST_WAIT_S) -> None:
        """Wait until everything is written, unless nothing is for so long."""
        with self._changed:
            while self._size and not self._has_failed:
                before = self._num_written
                if not self._changed.wait(timeout_s) and self._num_written == before:
                    return

    def _run(self) -> None:
        while not self._has_failed:
            with self._changed:
                while not self._queue:
                    self._is_stalled = False
                    self._changed.wait()
                file, text = self._queue.popleft()
            try:
                self._write(file, text)
            except OSError as error:
                with self._changed:
                    self._has_failed = True
                    self._queue.clear()
                    self._changed.notify_all()
                for stream in self.streams:
                    stream.failed(error)

    def _write(self, file: int, text: bytes) -> None:
        while text:
            try:
                written = os.write(file, text)
            except BlockingIOError:  # whoever shares the descriptor does not want to wait
                select.select([], [file], [])
                continue
            text = text[written:]
            with self._changed:
                self._size -= written
                self._num_written += written
                self._changed.notify_all()


@contextmanager
def lasting_output() -> Iterator[None]:
    """Have `Output` for standard output, standard error and log lines inside the block."""
    open_standard_files()
    before = sys.stdout, sys.stderr
    outputs: list[Output] = []
    for stream in before:
        same = next((each.writer for each in outputs if each.writer and is_same(each.writer.file, stream)), None)
        outputs.append(Output(stream, same))
    sys.stdout, sys.stderr = cast("list[TextIO]", outputs)
    _move_log_lines(before, outputs)
    try:
        yield
    finally:
        for output in outputs:
            if output.writer is not None:
                output.writer.finish()
        sys.stdout, sys.stderr = before
        _move_log_lines(tuple(outputs), before)


def on_trouble(tell: Tell) -> None:
    """Call `tell` when standard output or standard error fails, where they are lasting ones."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Output):
            stream.on_trouble(tell)


def open_standard_files() -> None:
    """Open what is closed of descriptors 0 to 2: else the next file, a ledger say, would be standard output."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(file, True)
    os.close(file)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def file_of(stream: TextIO) -> int | None:
    """The descriptor that a stream writes to, with everything written that it has held back."""
    with suppress(OSError, ValueError, AttributeError):
        file = stream.fileno()
        with suppress(OSError):
            stream.flush()
        return file
    return None


def is_same(file: int, stream: TextIO) -> bool:
    """Whether a stream writes to the file of a descriptor."""
    other = file_of(stream)
    return other is not None and os.path.sameopenfile(file, other)


def silence(file: int) -> None:
    """Let a descriptor take everything and keep nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, file)
    os.close(nothing)


def _move_log_lines(streams: tuple[Any, ...], to: Any) -> None:
    for handler in getLogger().handlers:
        for stream, other in zip(streams, to, strict=True):
            if isinstance(handler, StreamHandler) and handler.stream is stream:
                handler.setStream(other)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, 'OSError')}: {os.strerror(error.errno)}"
    return f"{type(error).__name__}: {error}"
