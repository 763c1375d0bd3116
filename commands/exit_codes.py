"""Runs a command's coroutine to its end, and makes an exit code of what that was."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from settings.checks import RefusedError
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FailedError, one_line

logger = logging.getLogger(__name__)


def run_to_exit_code(
    coroutine: Coroutine[Any, Any, int],
    *,
    to_continue: str = "continue with --resume",
    note: Callable[[str], object] = lambda reason: None,
) -> int:
    """The coroutine's own code; an error is told in one line, to `note` as well, and the exit code is 1.

    Where it came from is logged too, unless the line says that: of a time that is over, or of a process or machine
    that was lost.
    """
    try:
        return asyncio.run(coroutine)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"interrupted; {to_continue}", file=sys.stderr)
        return DRAINED
    except BaseException as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, RefusedError):
            print(f"error: {one_line(cause)}", file=sys.stderr)
            return BAD_INPUT
        kind = "" if isinstance(cause, FailedError) else f"{type(cause).__name__}: "
        reason = f"{kind}{one_line(cause)}"
        note(reason)
        if not _says_all(cause):
            logger.error("the run failed", exc_info=error)
        print(f"failed: {reason}", file=sys.stderr)
        return FAILED


def _says_all(cause: BaseException) -> bool:
    from cluster.errors import is_infrastructure  # Ray, which runs by now
    from controller.learner_group import LearnerLostError

    if isinstance(cause, LearnerLostError) and cause.__cause__ is not None:
        return _says_all(cause.__cause__)
    return isinstance(cause, FailedError | TimeoutError) or is_infrastructure(cause)
