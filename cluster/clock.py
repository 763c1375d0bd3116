"""The clock of the controller: its event loop's, so that a loop of simulated time measures simulated seconds."""

from asyncio import get_running_loop


def now() -> float:
    """Seconds of the running event loop's clock, from an arbitrary start; RuntimeError outside a loop."""
    return get_running_loop().time()
