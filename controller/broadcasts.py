"""Published weights by broadcast to the nodes of the student engines, before the engines are told to load them.

    learner, first rank -- broadcast --> one engine of each node --> the node's file --> every engine of the node

The calls of `controller/broadcasts.py`'s decisions. Whatever fails here costs time and no weights: engines
that do not find the file fetch the same version from the object store.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from cluster.pool import Pool
from cluster.waiting import now, wait_for
from records.events import Events, reason_of
from transport.collective import Rendezvous
from transport.weights import WeightManifest

# -- collective group --------------------------------------------------------------------------------------
# Which engines receive the next weights by broadcast, when their group is formed anew, and when it is given up.
#
# Pure: it knows names, nodes and outcomes. `controller/broadcasts.py` makes the calls.
#
# The group is rank 0 (the learner's first rank) and one engine of each node, since the engines of a node share
# one file: the others of the node find it. Whoever is not reached (an engine that starts, one that missed the
# broadcast, one whose node has no member) loads the same version from the object store.


MAX_FAILURES = 3
"""After so many failures in a row the group is not formed any more."""
MAX_MISSES = 2
"""An engine that gave no answer so many times in a row is not a member any more."""


@dataclass(frozen=True)
class Candidate:
    """An engine that could be a member, and the node whose file it would write."""

    name: str
    node_id: str


@dataclass(frozen=True)
class Group:
    """One formed group, or one to be formed. Each has a number that no other one has."""

    number: int
    incarnation: int
    members: tuple[str, ...]
    """Engines in the order of their ranks, which begin at 1."""

    @property
    def world_size(self) -> int:
        """Ranks, the learner's among them."""
        return 1 + len(self.members)

    def rank_of(self, name: str) -> int:
        """The rank of a member."""
        return 1 + self.members.index(name)


@dataclass(frozen=True)
class Turn:
    """What to do with one version: form `group` first if it `is_new`, then broadcast in it."""

    group: Group
    is_new: bool


class Membership:
    """Follows members, successes and failures. Each `next` is followed by `succeeded` or `failed`, if not None."""

    def __init__(self) -> None:
        self._formed: Group | None = None
        self._num_groups = 0
        self._num_failures = 0
        self._misses: Counter[str] = Counter()

    @property
    def is_given_up(self) -> bool:
        """True once it has failed too often in a row: the object store serves from then on."""
        return self._num_failures >= MAX_FAILURES

    @property
    def formed(self) -> Group | None:
        """The group that stands."""
        return self._formed

    def next(self, incarnation: int, candidates: Sequence[Candidate]) -> Turn | None:
        """The turn of the next version, given the engines that serve, in the order of their names; None: none."""
        members = () if self.is_given_up else self._members(candidates)
        if not members:
            self._formed = None
            return None
        formed = self._formed
        if formed is not None and (formed.incarnation, formed.members) == (incarnation, members):
            return Turn(formed, is_new=False)
        self._formed = None
        self._num_groups += 1
        return Turn(Group(self._num_groups, incarnation, members), is_new=True)

    def succeeded(self, group: Group) -> None:
        """All members of the group have got the version."""
        self._formed = group
        self._num_failures = 0
        for name in group.members:
            del self._misses[name]

    def failed(self, silent: Collection[str]) -> None:
        """Forming or the broadcast failed; `silent` are the members that gave no answer in time.

        The others are not to blame: they fail with the one that is missing. The group is of no use any more.
        """
        self._formed = None
        self._num_failures += 1
        self._misses.update(silent)

    def _members(self, candidates: Sequence[Candidate]) -> tuple[str, ...]:
        """One engine of each node: the present member if there is one, so that the group stays, else the first."""
        present = () if self._formed is None else self._formed.members
        member_of: dict[str, str] = {}
        for each in candidates:
            if self._misses[each.name] >= MAX_MISSES:
                continue
            if each.node_id not in member_of or each.name in present:
                member_of[each.node_id] = each.name
        return tuple(each.name for each in candidates if member_of.get(each.node_id) == each.name)


LEARNER = "the learner"
MARGIN_S = 5.0
"""Members notice the limit themselves; one that has not answered this long after it is the missing one."""


@dataclass(frozen=True)
class Failure:
    """Why members did not get a version, by name, and those that gave no answer."""

    reasons: Mapping[str, str]
    silent: frozenset[str]

    @property
    def reason(self) -> str:
        """In one line: first of those that gave no answer."""
        ordered = sorted(self.reasons, key=lambda name: (name not in self.silent, name))
        return "; ".join(f"{name}: {self.reasons[name]}" for name in ordered)


class WeightBroadcast:
    """Spreads one version after the other. Members join and leave between two of them."""

    def __init__(self, backend: str, *, learner: Pool, engines: Pool, events: Events, timeout_s: float) -> None:
        """`backend`: gloo or nccl. `timeout_s`: limit of forming a group, and of a broadcast."""
        self._backend = backend
        self._learner = learner
        self._engines = engines
        self._events = events
        self._timeout_s = timeout_s
        self._group = Membership()

    async def spread(self, manifest: WeightManifest) -> None:
        """Bring the set that the learner has just published to the nodes; returns also if it could not."""
        workers = {worker.name: worker for worker in self._engines.healthy}
        turn = self._group.next(
            manifest.incarnation, [Candidate(name, worker.node_id) for name, worker in workers.items()]
        )
        if turn is None:
            await self._forget()
            return
        handles = {name: workers[name].handle for name in turn.group.members}
        start, failure = now(), None
        if turn.is_new:
            failure = await self._form(turn.group, handles)
        failure = failure or await self._broadcast(manifest, turn.group, handles)
        if failure is None:
            self._group.succeeded(turn.group)
            self._note("weights_broadcast", manifest, turn.group, start, bytes=manifest.total_bytes)
            return
        self._group.failed(failure.silent)
        await self._forget()
        again = "no" if self._group.is_given_up else "next version"
        self._note("weights_fallback", manifest, turn.group, start, again=again, reason=failure.reason)

    async def _forget(self) -> None:
        """Let the learner free what it keeps for a broadcast; RayError if it has died."""
        call = self._learner.workers[0].handle.forget_weights.remote()
        await wait_for(call, timeout_s=self._timeout_s, what="the learner: freeing weights that are not sent")

    async def _form(self, group: Group, handles: Mapping[str, Any]) -> Failure | None:
        start, first = now(), self._learner.workers[0].handle
        try:
            what = "the learner: a meeting point of the group"
            address, port = await wait_for(first.rendezvous.remote(), timeout_s=self._timeout_s, what=what)
        except (RayError, TimeoutError) as error:
            return Failure({LEARNER: reason_of(error)}, frozenset())
        rendezvous = Rendezvous(
            backend=self._backend,
            address=address,
            port=port,
            name=f"{group.incarnation}-{group.number}",
            world_size=group.world_size,
            timeout_s=self._timeout_s,
        )
        calls = {name: h.join_weight_group.remote(rendezvous, group.rank_of(name)) for name, h in handles.items()}
        failure = await self._all(
            {LEARNER: first.join_weight_group.remote(rendezvous), **calls}, "joining the group"
        )
        if failure is None:
            seconds = round(now() - start, 4)
            self._events.add("weights_group", group=group.number, members=[*group.members], seconds=seconds)
        return failure

    async def _broadcast(
        self, manifest: WeightManifest, group: Group, handles: Mapping[str, Any]
    ) -> Failure | None:
        calls = {name: handles[name].receive_weights.remote(manifest) for name in group.members}
        first = self._learner.workers[0].handle
        calls[LEARNER] = first.send_weights.remote(manifest.incarnation, manifest.version)
        return await self._all(calls, f"the broadcast of v{manifest.version}")

    async def _all(self, calls: Mapping[str, Awaitable[Any]], what: str) -> Failure | None:
        """Wait for the answers of all, each of which has the limit by itself too."""
        limit_s = self._timeout_s + MARGIN_S
        waits = (wait_for(call, timeout_s=limit_s, what=f"{name}: {what}") for name, call in calls.items())
        answers = dict(zip(calls, await asyncio.gather(*waits, return_exceptions=True), strict=True))
        errors = {name: answer for name, answer in answers.items() if isinstance(answer, BaseException)}
        for error in errors.values():
            if not isinstance(error, RayError | TimeoutError):
                raise error
        silent = {name for name, error in errors.items() if not isinstance(error, RayError)}
        return Failure({n: reason_of(e) for n, e in errors.items()}, frozenset(silent)) if errors else None

    def _note(self, event: str, manifest: WeightManifest, group: Group, start: float, **details: Any) -> None:
        self._events.add(
            event,
            version=manifest.version,
            incarnation=manifest.incarnation,
            group=group.number,
            members=[*group.members],
            seconds=round(now() - start, 4),
            **details,
        )
