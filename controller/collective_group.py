"""Which engines receive the next weights by broadcast, when their group is formed anew, and when it is given up.

Pure: it knows names, nodes and outcomes. `controller/broadcasts.py` makes the calls.

The group is rank 0 (the learner's first rank) and one engine of each node, since the engines of a node share one
file: the others of the node find it. Whoever is not reached (an engine that starts, one that missed the broadcast,
one whose node has no member) loads the same version from the object store.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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


class CollectiveGroup:
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
