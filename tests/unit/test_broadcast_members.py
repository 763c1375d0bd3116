"""Who is in the group of a broadcast, when it is formed anew and when given up: through any course of a run."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from controller.broadcasts import MAX_FAILURES, MAX_MISSES, Candidate, Group, Membership, Turn


def candidates(**node_of: str) -> list[Candidate]:
    """Engines and their nodes."""
    return [Candidate(name, node_id) for name, node_id in node_of.items()]


TWO = candidates(a="x", b="y")


def succeed(group: Membership, engines: list[Candidate], incarnation: int = 0) -> Turn:
    """Take one turn, successfully."""
    turn = group.next(incarnation, engines)
    assert turn is not None
    group.succeeded(turn.group)
    return turn


def test_the_learner_is_rank_0_and_engines_follow_in_their_order() -> None:
    turn = succeed(Membership(), candidates(a="x", b="y", c="z"))
    assert turn == Turn(Group(1, 0, ("a", "b", "c")), is_new=True)
    assert [turn.group.rank_of(name) for name in turn.group.members] == [1, 2, 3]
    assert turn.group.world_size == 4


def test_one_engine_of_each_node_is_a_member() -> None:
    assert succeed(Membership(), candidates(a="x", b="x", c="y", d="x")).group.members == ("a", "c")


def test_a_group_stays_while_its_members_do() -> None:
    group = Membership()
    first = succeed(group, candidates(b="x", c="y"))
    assert succeed(group, candidates(a="x", b="x", c="y", d="y")) == Turn(first.group, is_new=False)


def test_it_is_formed_anew_when_a_member_goes_or_a_node_comes_or_the_incarnation_changes() -> None:
    group = Membership()
    succeed(group, candidates(a="x", b="x", c="y"))
    turns = [
        succeed(group, candidates(b="x", c="y")),
        succeed(group, candidates(b="x", c="y", d="z")),
        succeed(group, candidates(b="x", c="y", d="z"), incarnation=1),
    ]
    assert [turn.group.members for turn in turns] == [("b", "c"), ("b", "c", "d"), ("b", "c", "d")]
    assert [(turn.group.number, turn.is_new) for turn in turns] == [(2, True), (3, True), (4, True)]


def test_without_engines_there_is_no_group() -> None:
    group = Membership()
    succeed(group, TWO)
    assert group.next(0, []) is None
    assert succeed(group, TWO).is_new


def test_after_a_failure_the_same_members_form_a_new_group() -> None:
    group = Membership()
    first = succeed(group, TWO)
    assert group.next(0, TWO) == Turn(first.group, is_new=False)
    group.failed(())
    assert succeed(group, TWO) == Turn(Group(2, 0, ("a", "b")), is_new=True)


def test_an_engine_that_is_silent_twice_gives_its_place_to_another_of_its_node() -> None:
    group, engines = Membership(), candidates(a="x", b="y", c="y")
    members = []
    for _ in range(MAX_MISSES):
        turn = group.next(0, engines)
        assert turn is not None
        members.append(turn.group.members)
        group.failed(["b"])
    assert members == [("a", "b")] * MAX_MISSES
    assert succeed(group, engines).group.members == ("a", "c")
    assert succeed(group, TWO).group.members == ("a",)


def test_an_engine_that_took_part_again_starts_afresh() -> None:
    group = Membership()
    for _ in range(4):
        group.next(0, TWO)
        group.failed(["b"])
        assert succeed(group, TWO).group.members == ("a", "b")


def test_failures_in_a_row_end_it() -> None:
    group = Membership()
    for _ in range(MAX_FAILURES):
        assert not group.is_given_up
        assert group.next(0, TWO) is not None
        group.failed(())
    assert group.is_given_up
    assert group.next(0, TWO) is None


def test_failures_with_a_success_between_do_not_end_it() -> None:
    group = Membership()
    for _ in range(3 * MAX_FAILURES):
        group.next(0, TWO)
        group.failed(())
        succeed(group, TWO)
    assert not group.is_given_up


@dataclass
class Course:
    """What happens to a group: what is checked holds at every version."""

    group: Membership = field(default_factory=Membership)
    standing: Group | None = None
    failures_in_a_row: int = 0
    numbers: list[int] = field(default_factory=list)

    def publish(self, engines: list[Candidate], incarnation: int, silent: frozenset[str] | None) -> None:
        """One version; `silent` is None where it succeeds."""
        turn = self.group.next(incarnation, engines)
        if turn is None:
            self.standing = None
            return
        self.check(turn, engines, incarnation)
        if silent is None:
            self.group.succeeded(turn.group)
            self.standing, self.failures_in_a_row = turn.group, 0
        else:
            self.group.failed(silent & set(turn.group.members))
            self.standing, self.failures_in_a_row = None, self.failures_in_a_row + 1
        assert self.group.formed == self.standing

    def check(self, turn: Turn, engines: list[Candidate], incarnation: int) -> None:
        """Members serve, at most one of each node, in order; a group is used again only if nothing has changed."""
        assert self.failures_in_a_row < MAX_FAILURES
        order = [each.name for each in engines]
        members = turn.group.members
        assert members
        assert [order.index(name) for name in members] == sorted({order.index(name) for name in members})
        nodes = [each.node_id for each in engines if each.name in members]
        assert len(nodes) == len(set(nodes))
        assert turn.group.incarnation == incarnation
        if turn.is_new:
            assert turn.group.number > max(self.numbers, default=0)
            self.numbers.append(turn.group.number)
        else:
            assert turn.group == self.standing


ENGINES = st.lists(st.integers(0, 7), unique=True, max_size=6).map(
    lambda found: [Candidate(f"rollout-{i}", f"node-{i % 3}") for i in sorted(found)]
)
SILENT = st.none() | st.frozensets(st.integers(0, 7).map(lambda i: f"rollout-{i}"), max_size=2)


@given(st.lists(st.tuples(ENGINES, st.integers(0, 20), SILENT), max_size=30))
def test_any_course_of_joins_deaths_and_failures(
    versions: list[tuple[list[Candidate], int, frozenset[str] | None]],
) -> None:
    course = Course()
    for engines, luck, silent in versions:
        course.publish(engines, incarnation=int(luck == 0), silent=silent)


@given(st.lists(ENGINES.filter(bool), min_size=1, max_size=20))
def test_without_failures_every_node_with_an_engine_is_reached(versions: list[list[Candidate]]) -> None:
    group = Membership()
    for engines in versions:
        members = succeed(group, engines).group.members
        assert {e.node_id for e in engines if e.name in members} == {e.node_id for e in engines}
