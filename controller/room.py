"""Who takes the next slot: the worker with the most room, found without looking at all of them each time."""

import heapq
from collections.abc import Mapping

from cluster.worker import Worker


class Room:
    """What workers may still be given, in slots.

    >>> room = Room({first: 2, second: 1})
    >>> [room.take(), room.take(), room.take(), room.take()]
    [first, first, second, None]
    """

    def __init__(self, room: Mapping[Worker, int]) -> None:
        """Of workers with equal room, the one named first comes first."""
        self._heap = [(-slots, order, worker) for order, (worker, slots) in enumerate(room.items()) if slots > 0]
        heapq.heapify(self._heap)

    def take(self, *, avoid: Worker | None = None) -> Worker | None:
        """Give a slot to the worker with the most room; None if there is none, or only with `avoid`."""
        if not self._heap or (self._heap[0][2] is avoid and len(self._heap) == 1):
            return None
        taken = heapq.heappop(self._heap)
        if taken[2] is avoid:
            taken = heapq.heapreplace(self._heap, taken)
        slots, order, worker = taken
        if slots < -1:
            heapq.heappush(self._heap, (slots + 1, order, worker))
        return worker
