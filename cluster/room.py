"""Who takes the next slot: the worker with the most room, found without looking at all of them each time."""

import heapq
from collections.abc import Mapping

from cluster.workers import Worker


class Room:
    """What workers may still be given, in slots.

    >>> room = Room({first: 2, second: 1})
    >>> [room.take(), room.take(), room.take()]
    [first, first, second]
    """

    def __init__(self, room: Mapping[Worker, int]) -> None:
        """Of workers with equal room, the one named first comes first."""
        self._heap = [(-slots, order, worker) for order, (worker, slots) in enumerate(room.items()) if slots > 0]
        heapq.heapify(self._heap)
        self.total = -sum(slots for slots, _, _ in self._heap)

    def take(self, *, avoid: Worker | None = None) -> Worker:
        """Give a slot to the worker with the most room, if possible not to `avoid`; IndexError without room."""
        taken = heapq.heappop(self._heap)
        if taken[2] is avoid and self._heap:
            taken = heapq.heapreplace(self._heap, taken)
        slots, order, worker = taken
        self.total -= 1
        if slots < -1:
            heapq.heappush(self._heap, (slots + 1, order, worker))
        return worker
