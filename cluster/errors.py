"""What an error says about whose fault it is: of the machines (infrastructure), or of what was asked of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from records.events import reason_of
from settings.exit_codes import FailedError

INFRASTRUCTURE = (
    RayActorError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    WorkerCrashedError,
    TaskCancelledError,
)
"""A time that is over is none of these: a request may be at fault too, and another try must be bounded."""


def is_infrastructure(error: BaseException) -> bool:
    """Whether a machine or process failed, and not what it was asked to do.

    An error that a worker raised is about the request, unless it says that the request's input was lost.
    """
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, INFRASTRUCTURE) or is_lost(error)
    return isinstance(error, INFRASTRUCTURE)


@contextmanager
def start_of(name: str) -> Iterator[None]:
    """Name a worker that died while it started: Ray's own error has many lines, and no name that is known."""
    try:
        yield
    except RayError as error:
        if not is_infrastructure(error):
            raise
        raise FailedError(f"{name} has died while it started: {reason_of(error)}") from error


def is_lost(error: BaseException) -> bool:
    """Whether a table that was handed over does not exist any more."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, ObjectLostError)


MISTAKES = (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError, IndexError)
"""Errors that come again wherever the same is asked."""


def is_mistake(error: BaseException) -> bool:
    """Whether a worker raised an error that another try would only repeat."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, MISTAKES)
    return isinstance(error, MISTAKES) and not isinstance(error, RayError)
