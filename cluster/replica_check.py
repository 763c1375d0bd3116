"""The replica check of a pool of frozen models: a worker serves only if it scores a sequence as the others do.

The first worker that is asked sets the log-probs; a replica with other weights, a damaged copy or another
precision is found before it scores anything.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cluster.waiting import wait_for
from cluster.worker import Worker
from settings.checks import RefusedError
from transport.weights import GOLDEN_LIMITS


class ReplicaCheck:
    """The log-probs that every worker of one pool must give."""

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        dtype: str,
        timeout_s: float,
        limit: float | None = None,
        is_enforced: bool = True,
        known: Sequence[float] | None = None,
        keep: Callable[[list[float], float | None], object] = lambda log_probs, difference: None,
        model: str = "",
    ) -> None:
        """The sequence is `token_ids`; `dtype` is the precision of the engines.

        `limit` is the largest mean absolute difference, by default that of the precision. A larger one is an
        error only if `is_enforced`. `known` is what the run's `model` answered when it began; a first answer, or
        one that differs and is accepted, goes to `keep` with that difference.
        """
        self._token_ids = list(token_ids)
        self.limit = GOLDEN_LIMITS[dtype] if limit is None else limit
        self._is_enforced = is_enforced
        self._timeout_s = timeout_s
        self._known, self._keep, self._model = known, keep, model
        self._answer: tuple[str, np.ndarray] | None = None  # who set it, and its values
        self.differences: dict[str, float] = {}
        """Mean absolute difference to the first worker's answer, by worker, of those that were asked."""

    @property
    def mean(self) -> float | None:
        """Mean of the answer that the first worker gave; None before."""
        return None if self._answer is None else float(self._answer[1].mean())

    async def ask(self, worker: Worker) -> float:
        """Ask a started worker; returns the mean absolute difference to the first one's log-probs.

        Raises RefusedError if it is above the limit, RayError or TimeoutError without an answer.
        """
        values: list[float] = await wait_for(
            worker.handle.log_probs_of.remote(self._token_ids),
            timeout_s=self._timeout_s,
            what=f"the replica check of {worker.name}",
        )
        given = np.asarray(values)
        if self._answer is None:
            self._answer = self._first(worker.name, given)
        first, expected = self._answer
        difference = _difference(given, expected)
        self.differences[worker.name] = difference
        if self._is_enforced and not difference <= self.limit:
            raise RefusedError(disagreement(worker.name, first, difference, self.limit))
        return difference

    def _first(self, worker: str, given: np.ndarray) -> tuple[str, np.ndarray]:
        """What all are compared with: what the run began with, else the first answer; else RefusedError."""
        if self._known is None:
            self._keep(given.tolist(), None)
            return worker, given
        difference = _difference(given, np.asarray(self._known))
        if difference <= self.limit:
            return "the run's beginning", np.asarray(self._known)
        if self._is_enforced:
            raise RefusedError(
                f"{self._model} is not the model that the run began with: log-probs of a fixed sequence differ by "
                f"{difference:.3g} on average, limit {self.limit:g} (check replicas; --force replicas continues "
                f"with this one)"
            )
        self._keep(given.tolist(), difference)
        return worker, given


def _difference(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(given - expected).mean()) if given.shape == expected.shape else float("inf")


def disagreement(worker: str, first: str, difference: float, limit: float) -> str:
    """What is said of a worker whose answer is not the first one's."""
    return (
        f"{worker} does not agree with its replicas: its log-probs of a fixed sequence differ from those of "
        f"{first} by {difference:.3g} on average, limit {limit:g} (check replicas; --force replicas continues "
        f"anyway)"
    )
