"""The known answer of a pool of frozen models: a worker serves only if it answers a question as the others do.

The first worker that is asked sets the answer; a replica with other weights, a damaged copy or another precision
is found before it scores anything.
"""

from collections.abc import Sequence

import numpy as np

from cluster.waiting import wait_for
from cluster.weights import GOLDEN_LIMITS
from cluster.workers import Worker


class KnownAnswer:
    """What every worker of one pool must answer."""

    def __init__(self, token_ids: Sequence[int], *, dtype: str, timeout_s: float) -> None:
        """The question is the sequence `token_ids`; `dtype` is the precision of the engines."""
        self._token_ids = list(token_ids)
        self._limit = GOLDEN_LIMITS[dtype]
        self._timeout_s = timeout_s
        self._answer: tuple[str, np.ndarray] | None = None  # who set it, and its values

    async def ask(self, worker: Worker) -> float:
        """Ask a started worker; returns the mean absolute difference to the known answer.

        Raises ValueError if it is above the limit of the precision, RayError or TimeoutError without an answer.
        """
        values: list[float] = await wait_for(
            worker.handle.known_answer.remote(self._token_ids),
            timeout_s=self._timeout_s,
            what=f"the known answer of {worker.name}",
        )
        given = np.asarray(values)
        if self._answer is None:
            self._answer = (worker.name, given)
        first, expected = self._answer
        difference = float(np.abs(given - expected).mean()) if given.shape == expected.shape else float("inf")
        if not difference <= self._limit:
            raise ValueError(
                f"{worker.name} does not give the known answer: its log-probs of a fixed sequence differ from "
                f"those of {first} by {difference:.3g} on average, limit {self._limit:g}"
            )
        return difference
