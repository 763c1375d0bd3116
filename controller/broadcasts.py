"""Published weights by broadcast to the nodes of the student engines, before the engines are told to load them.

    learner, first rank -- broadcast --> one engine of each node --> the node's file --> every engine of the node

The group is rank 0 (the learner's first rank) and one engine of each node: the others of the node find its file.
Whatever fails costs time and no weights: whoever is not reached (an engine that starts, or missed the broadcast)
loads the same version from the object store.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from cluster.pool import Pool
from cluster.waiting import now, wait_for
from records.events import Events, reason_of
from transport.collective import Rendezvous
from transport.weights import WeightManifest

MAX_FAILURES = 3
"""After this many failures in a row no group is formed any more."""
MAX_MISSES = 2
"""An engine that gave no answer this many times in a row is not a member any more."""

LEARNER = "the learner"
MARGIN_S = 5.0
"""Members notice the limit themselves; one that has not answered this long after it is the missing one."""


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
        self._membership = Membership()

    async def spread(self, manifest: WeightManifest) -> None:
        """Bring the set that the learner has just published to the nodes; returns also if it could not."""
        workers = {worker.name: worker for worker in self._engines.healthy}
        node_of = {name: worker.node_id for name, worker in workers.items()}
        group = self._membership.next(manifest.incarnation, node_of)
        if group is None:
            await self._forget()
            return
        handles = {name: workers[name].handle for name in group.members}
        start, failure = now(), None
        if group is not self._membership.formed:
            failure = await self._form(group, handles)
        failure = failure or await self._broadcast(manifest, group, handles)
        if failure is None:
            self._membership.succeeded(group)
            self._note("weights_broadcast", manifest, group, start, bytes=manifest.total_bytes)
            return
        self._membership.failed(failure.silent)
        await self._forget()
        again = "no" if self._membership.is_given_up else "next version"
        self._note("weights_fallback", manifest, group, start, again=again, reason=failure.reason)

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


# -- who is in the group: pure, it knows names, nodes and outcomes ------------------------------------------


class Membership:
    """Follows members, successes and failures. Each `next` is followed by `succeeded` or `failed`, if not None."""

    def __init__(self) -> None:
        self.formed: Group | None = None
        """The group that stands; any other one has to be formed first."""
        self._num_groups = 0
        self._num_failures = 0
        self._misses: Counter[str] = Counter()

    @property
    def is_given_up(self) -> bool:
        """True once it has failed too often in a row: the object store serves from then on."""
        return self._num_failures >= MAX_FAILURES

    def next(self, incarnation: int, node_of: Mapping[str, str]) -> Group | None:
        """The group of the next version; None: none. `node_of`: the engines that serve, in the order of ranks."""
        members = () if self.is_given_up else self._members(node_of)
        formed = self.formed
        if formed is not None and (formed.incarnation, formed.members) == (incarnation, members):
            return formed
        self.formed = None
        if not members:
            return None
        self._num_groups += 1
        return Group(self._num_groups, incarnation, members)

    def succeeded(self, group: Group) -> None:
        """All members of the group have got the version."""
        self.formed = group
        self._num_failures = 0
        for name in group.members:
            del self._misses[name]

    def failed(self, silent: Collection[str]) -> None:
        """Forming or the broadcast failed; `silent` are the members that gave no answer in time.

        The others are not to blame: they fail with the one that is missing. The group is of no use any more.
        """
        self.formed = None
        self._num_failures += 1
        self._misses.update(silent)

    def _members(self, node_of: Mapping[str, str]) -> tuple[str, ...]:
        """One engine of each node: the present member if there is one, so that the group stays, else the first."""
        present = () if self.formed is None else self.formed.members
        member_of: dict[str, str] = {}
        for name, node_id in node_of.items():
            if self._misses[name] < MAX_MISSES and (node_id not in member_of or name in present):
                member_of[node_id] = name
        return tuple(name for name, node_id in node_of.items() if member_of.get(node_id) == name)
