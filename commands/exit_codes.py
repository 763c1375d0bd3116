"""Runs a command's coroutine to its end, and makes an exit code of what that was."""

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any

from settings.checks import RefusedError
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, one_line

logger = logging.getLogger(__name__)


def run_to_exit_code(coroutine: Coroutine[Any, Any, int], *, to_continue: str = "continue with --resume") -> int:
    """The coroutine's own code; an error is logged, its message printed, and the exit code is 1."""
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
        logger.error("the run failed", exc_info=error)
        print(f"failed: {type(cause).__name__}: {cause}", file=sys.stderr)
        return FAILED
