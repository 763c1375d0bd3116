"""Worker processes that compare expressions: started when first needed, replaced when a pair has ended one.

    pool = GradingPool(num_workers=2)
    pool.compare([("\\\\frac{1}{2}", "2^{-1}")])     # [Verdict.RIGHT]

Processes of their own, because sympy may take any time and memory, and cannot be interrupted otherwise. They are
plain subprocesses that talk through pipes: neither forked from a process with threads and devices, nor in need of
importing its main module. Any thread may call, and several at once.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import cache
from queue import Empty, SimpleQueue

from rewards.grading.worker import CPU_LIMIT_S, READY

logger = logging.getLogger(__name__)

PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from rewards.grading.worker import serve; serve()"
)
"""What a worker runs; it finds modules where this process finds them."""
START_LIMIT_S = 300.0
WALL_LIMIT_S = 900.0
"""Against a worker that neither computes nor answers; CPU time is what limits one that computes."""
MAX_STARTS = 3
MAX_WORKERS = 8
MAX_SHOWN = 100


class Verdict(Enum):
    """What became of a pair. All but RIGHT count as wrong."""

    RIGHT = "right"
    WRONG = "wrong"
    TIMED_OUT = "timed out"
    FAILED = "failed"


class GradingPool:
    """Compares pairs of (gold, prediction) on up to `num_workers` processes, by default half of the CPUs."""

    def __init__(self, num_workers: int | None = None, *, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self.num_workers = num_workers or max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // 2))
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="grading")
        self._idle: SimpleQueue[GradingWorker] = SimpleQueue()

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdict of every pair, in order; RuntimeError if no worker can be started."""
        return list(self._threads.map(self._compare, pairs))

    def close(self) -> None:
        """End all workers, when their pairs are done."""
        self._threads.shutdown(cancel_futures=True)
        while (worker := self._take_idle()) is not None:
            worker.close()

    def _compare(self, pair: tuple[str, str]) -> Verdict:
        while (worker := self._take_idle()) is not None:
            try:
                return self._compare_on(worker, pair)
            except BrokenPipeError:
                logger.warning("grading worker %d was gone before it was asked; another is", worker.pid)
        return self._compare_on(_start_worker(self._cpu_limit_s), pair)

    def _compare_on(self, worker: GradingWorker, pair: tuple[str, str]) -> Verdict:
        try:
            verdict = worker.compare(*pair)
        except BaseException:
            worker.kill()
            raise
        if worker.is_alive:
            self._idle.put(worker)
        return verdict

    def _take_idle(self) -> GradingWorker | None:
        try:
            return self._idle.get_nowait()
        except Empty:
            return None


class GradingWorker:
    """One process; a call blocks until the pair is done or has ended the process."""

    def __init__(self, *, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._read = b""
        try:
            self._write(list(map(str, sys.path)))
            if self._line(START_LIMIT_S) != READY:
                raise RuntimeError(f"a grading worker ended with status {self._process.wait()} while it started")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process can take another pair."""
        return self._process.poll() is None

    def compare(self, gold: str, prediction: str) -> Verdict:
        """Whether the two are equal; a pair that ends the process has timed out or failed."""
        self._write({"gold": gold, "prediction": prediction, "cpu_limit_s": self._cpu_limit_s})
        try:
            line = self._line(WALL_LIMIT_S)
        except TimeoutError as error:
            self.kill()
            logger.warning("graded wrong: %s: %s against %s", error, _shown(prediction), _shown(gold))
            return Verdict.TIMED_OUT
        if line is None:
            return self._ended(gold, prediction)
        answer = json.loads(line)
        if "error" in answer:
            logger.debug("graded wrong: %s: %s against %s", answer["error"], _shown(prediction), _shown(gold))
            return Verdict.FAILED
        return Verdict.RIGHT if answer["equal"] else Verdict.WRONG

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None, "the input is a pipe"
        self._process.stdin.close()
        try:
            self._process.wait(10 * self._cpu_limit_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()

    def _ended(self, gold: str, prediction: str) -> Verdict:
        """What became of a pair that ended the process, be it by the timer of CPU time or by a fault."""
        status = self._process.wait()
        is_timeout = status == -signal.SIGPROF
        what = f"more than {self._cpu_limit_s:g} s of CPU time" if is_timeout else f"the process (status {status})"
        logger.warning("graded wrong, it took %s: %s against %s", what, _shown(prediction), _shown(gold))
        return Verdict.TIMED_OUT if is_timeout else Verdict.FAILED

    def _write(self, message: object) -> None:
        assert self._process.stdin is not None, "the input is a pipe"
        self._process.stdin.write(json.dumps(message).encode("ascii") + b"\n")

    def _line(self, timeout_s: float) -> str | None:
        """The next line, None if the process has ended; TimeoutError."""
        assert self._process.stdout is not None, "the output is a pipe"
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer from a grading worker in {timeout_s:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("ascii")


def shared_pool() -> GradingPool:
    """The pool of this process, closed when it ends."""
    return _pool_of(os.getpid())


@cache
def _pool_of(pid: int) -> GradingPool:
    """Of a process: a forked one must not talk through the pipes of its parent."""
    pool = GradingPool()
    atexit.register(pool.close)
    return pool


def _start_worker(cpu_limit_s: float) -> GradingWorker:
    for attempt in range(1, MAX_STARTS):
        try:
            return GradingWorker(cpu_limit_s=cpu_limit_s)
        except (RuntimeError, TimeoutError, BrokenPipeError) as error:
            logger.warning("start %d of %d of a grading worker failed: %s", attempt, MAX_STARTS, error)
    return GradingWorker(cpu_limit_s=cpu_limit_s)


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
