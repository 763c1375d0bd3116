"""The clock of the controller: its event loop's, so that a loop of simulated time measures simulated seconds."""

import asyncio


def now() -> float:
    """Seconds of the running event loop's clock, from an arbitrary start; RuntimeError outside a loop."""
    return asyncio.get_running_loop().time()
