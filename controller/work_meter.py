"""What the workers of a stage have in hand and get done, summed up between two looks: what rates are fitted to."""

from cluster.clock import now


class WorkMeter:
    """What the workers of a stage did since it was last asked, and how long how much was in their hands.

    `take()` gives sums over the workers: `tokens` done; `busy_s`, seconds with anything in hand; `held_s`, the
    integral of the number in hand over time; `held_squared_s`, that of its square. `held_squared_s / held_s` is
    the number in hand that the average thing saw.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, float]] = {}  # number, and since when
        self._tokens = 0
        self._busy_s = self._held_s = self._held_squared_s = 0.0

    def add(self, tokens: int) -> None:
        """Count some tokens as done."""
        self._tokens += tokens

    def hold(self, worker: str, num: int) -> None:
        """Note that a worker has `num` things in hand from now on."""
        before, since = self._held.get(worker, (0, 0.0))
        until = now()
        if before:
            seconds = until - since
            self._busy_s += seconds
            self._held_s += before * seconds
            self._held_squared_s += before * before * seconds
        self._held[worker] = (num, until)

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        for worker, (num, _) in self._held.items():
            self.hold(worker, num)
        taken = {"tokens": self._tokens, "busy_s": self._busy_s, "held_s": self._held_s}
        taken["held_squared_s"] = self._held_squared_s
        self._tokens = 0
        self._busy_s = self._held_s = self._held_squared_s = 0.0
        return taken
