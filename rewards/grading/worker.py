"""The process that compares expressions, one pair per line, within limits that the kernel keeps.

It is started by `rewards/grading/pool.py` and imports neither torch nor Ray. A pair may use so much CPU time, not
wall-clock time: waiting for a busy machine costs a pair nothing. A pair that takes more ends the process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import TextIO

READY = "ready"
CPU_LIMIT_S = 5.0
"""CPU time of one pair; it usually takes milliseconds."""

MEMORY_BYTES = 2 << 30
"""Address space of the process."""


def serve() -> None:
    """Answer pairs until the standard input ends: `{"gold", "prediction", "cpu_limit_s"}` -> `{"equal"}` or
    `{"error"}`."""
    answers = _private_output()
    _limit()
    from rewards.grading.algebra import are_equal_expressions
    from rewards.grading.comparison import is_equal

    answers.write(READY + "\n")
    answers.flush()
    for line in sys.stdin:
        pair = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, pair["cpu_limit_s"])
        try:
            answer = {"equal": is_equal(pair["gold"], pair["prediction"], are_equal_expressions)}
        except Exception as error:  # noqa: BLE001  # whatever it is, the pair has failed
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _private_output() -> TextIO:
    """The standard output for this module alone; what libraries print goes to the standard error."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def _limit() -> None:
    """No core files, little memory, no chatter; SIGPROF, which the timer sends, ends the process at once."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; this process ends with its input
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    logging.disable(logging.CRITICAL)
