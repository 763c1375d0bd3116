"""The controller's part of a broadcast, with members in this process and simulated time: calls and events."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Demand
from cluster.ray_actors import WorkerSpec
from commands.plan.local_pool import LocalPool
from commands.plan.run import run_virtually
from controller.broadcasts import MARGIN_S, MAX_FAILURES, MAX_MISSES, Group, Membership, WeightBroadcast
from records.events import Events
from records.files import read_rows
from settings.cluster import ClusterConfig
from transport.collective import Rendezvous
from transport.weights import WeightManifest

LIMIT_S = 60.0
FOREVER_S = 1e6


@dataclass
class Member:
    """An engine, or the learner's first rank: answers, fails, or keeps silent."""

    calls: list[Any] = field(default_factory=list)
    join_error: str = ""
    error: str = ""
    is_silent: bool = False

    async def join_weight_group(self, rendezvous: Rendezvous, rank: int = 0) -> None:
        self.calls.append(("join", rendezvous.name, rank, rendezvous.world_size))
        await self._answer(self.join_error)

    async def receive_weights(self, manifest: WeightManifest) -> None:
        self.calls.append(("receive", manifest.version))
        await self._answer(self.error)

    async def send_weights(self, incarnation: int, version: int) -> None:
        self.calls.append(("send", incarnation, version))
        await self._answer(self.error)

    def rendezvous(self) -> tuple[str, int]:
        return "10.0.0.1", 1234

    def forget_weights(self) -> None:
        self.calls.append("forget")

    async def _answer(self, error: str) -> None:
        await asyncio.sleep(FOREVER_S if self.is_silent else 1.0)
        if error:
            raise RuntimeError(error)

    def taken(self) -> list[Any]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Scene:
    """A learner, two engines on two nodes, and what is spread to them."""

    def __init__(self, path: Path) -> None:
        self.path = path / "events.jsonl"
        events, config = Events(self.path), ClusterConfig()
        self.learner, self.engines = Member(), [Member() for _ in range(4)]
        members = {"learner": [self.learner], "rollout": self.engines}
        self.pools = {
            role: LocalPool(
                Demand(role, count, {}),
                lambda i, role=role: WorkerSpec(lambda m: m, (members[role][i],)),  # pyright: ignore[reportArgumentType]
                config=config,
                events=events,
            )
            for role, count in (("learner", 1), ("rollout", 2))
        }
        self.pool = self.pools["rollout"]
        self.broadcasts = WeightBroadcast(
            "gloo", learner=self.pools["learner"], engines=self.pool, events=events, timeout_s=LIMIT_S
        )
        self.version = -1

    async def open(self) -> None:
        for pool in self.pools.values():
            await pool.place()
            pool.admit(*pool.workers)
        for worker in self.pool.workers:
            worker.node_id = worker.name

    async def join(self) -> None:
        """One more engine, on a node of its own."""
        worker = self.pool.add()
        await self.pool.create([worker])
        worker.node_id = worker.name
        self.pool.admit(worker)

    async def spread(self) -> float:
        """Spread the next version; returns the seconds it took."""
        self.version += 1
        start = asyncio.get_running_loop().time()
        await self.broadcasts.spread(
            WeightManifest(2, self.version, "float32", (), (4, 6), (0, 0), (1, 2), (-1.0,))
        )
        return asyncio.get_running_loop().time() - start

    def events(self, name: str) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.path) if row["event"] == name]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def play(scene: Scene, publishes: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        await scene.open()
        await publishes

    run_virtually(main())


def test_a_group_is_formed_once_and_then_only_broadcast_in(scene: Scene) -> None:
    async def publishes() -> None:
        assert await scene.spread() == 2.0
        assert scene.learner.taken() == [("join", "2-1", 0, 3), ("send", 2, 0)]
        assert [e.taken() for e in scene.engines[:2]] == [
            [("join", "2-1", rank, 3), ("receive", 0)] for rank in (1, 2)
        ]
        assert await scene.spread() == 1.0
        assert scene.learner.taken() == [("send", 2, 1)]

    play(scene, publishes())
    assert [row["members"] for row in scene.events("weights_group")] == [["rollout-0", "rollout-1"]]
    assert [(row["version"], row["bytes"]) for row in scene.events("weights_broadcast")] == [(0, 10), (1, 10)]
    assert scene.events("weights_fallback") == []


def test_members_that_join_die_and_retire_form_it_anew(scene: Scene) -> None:
    async def publishes() -> None:
        await scene.spread()
        await scene.join()
        await scene.spread()
        scene.pool.mark_dead(scene.pool.workers[0], "killed")
        await scene.spread()
        scene.pool.drain(scene.pool.workers[1])
        await scene.spread()

    play(scene, publishes())
    assert [[name[-1] for name in row["members"]] for row in scene.events("weights_group")] == [
        ["0", "1"],
        ["0", "1", "2"],
        ["1", "2"],
        ["2"],
    ]


def test_a_failed_forming_is_a_fall_back_and_is_tried_again_at_the_next_version(scene: Scene) -> None:
    async def publishes() -> None:
        scene.engines[1].join_error = "no route"
        await scene.spread()
        assert scene.learner.taken() == [("join", "2-1", 0, 3), "forget"]
        scene.engines[1].join_error = ""
        await scene.spread()
        assert scene.learner.taken() == [("join", "2-2", 0, 3), ("send", 2, 1)]

    play(scene, publishes())
    (row,) = scene.events("weights_fallback")
    assert (row["version"], row["incarnation"], row["again"]) == (0, 2, "next version")
    assert row["reason"] == "rollout-1: RayTaskError(RuntimeError): RuntimeError: no route"
    assert [row["version"] for row in scene.events("weights_broadcast")] == [1]


def test_an_engine_that_is_silent_costs_the_limit_twice_and_is_then_left_out(scene: Scene) -> None:
    async def publishes() -> None:
        await scene.spread()
        scene.engines[1].is_silent = True
        assert [await scene.spread() for _ in range(2)] == [LIMIT_S + MARGIN_S] * 2
        assert await scene.spread() == 2.0

    play(scene, publishes())
    fallbacks = scene.events("weights_fallback")
    assert [row["version"] for row in fallbacks] == [1, 2]
    assert fallbacks[0]["reason"] == (
        f"rollout-1: TimeoutError: no answer after {LIMIT_S + MARGIN_S:g} s from: rollout-1: the broadcast of v1"
    )
    assert scene.events("weights_broadcast")[-1]["members"] == ["rollout-0"]


def test_after_failures_in_a_row_the_object_store_serves_alone(scene: Scene) -> None:
    async def publishes() -> None:
        scene.learner.error = "no network"
        for _ in range(MAX_FAILURES):
            await scene.spread()
        scene.learner.error = ""
        scene.learner.taken()
        assert await scene.spread() == 0.0
        assert scene.learner.taken() == ["forget"]

    play(scene, publishes())
    assert [row["again"] for row in scene.events("weights_fallback")] == ["next version", "next version", "no"]
    assert scene.events("weights_broadcast") == []


# -- who is in the group ------------------------------------------------------------------------------------

TWO = {"a": "x", "b": "y"}


def succeed(membership: Membership, node_of: dict[str, str], incarnation: int = 0) -> Group:
    """Take one turn, successfully."""
    group = membership.next(incarnation, node_of)
    assert group is not None
    membership.succeeded(group)
    return group


def test_one_engine_of_each_node_is_a_member_and_stays_one_while_it_serves() -> None:
    membership = Membership()
    first = succeed(membership, {"b": "x", "c": "y"})
    assert (first, first.world_size, first.rank_of("c")) == (Group(1, 0, ("b", "c")), 3, 2)
    assert succeed(membership, {"a": "x", "b": "x", "c": "y", "d": "y"}) is first
    again = [
        succeed(membership, {"a": "x", "c": "y"}),
        succeed(membership, {"a": "x", "c": "y", "d": "z"}),
        succeed(membership, {"a": "x", "c": "y", "d": "z"}, incarnation=1),
    ]
    assert again == [Group(2, 0, ("a", "c")), Group(3, 0, ("a", "c", "d")), Group(4, 1, ("a", "c", "d"))]
    assert membership.next(1, {}) is None


def test_an_engine_that_is_silent_twice_gives_its_place_to_another_of_its_node() -> None:
    membership, engines = Membership(), TWO | {"c": "y"}
    for _ in range(MAX_MISSES):
        group = membership.next(0, engines)
        assert group is not None
        assert group.members == ("a", "b")
        membership.failed(["b"])
    assert succeed(membership, engines).members == ("a", "c")
    assert succeed(membership, TWO).members == ("a",)


def test_a_success_forgives_earlier_silence_and_failures() -> None:
    membership = Membership()
    for _ in range(2 * MAX_FAILURES):
        membership.next(0, TWO)
        membership.failed(["b"])
        assert succeed(membership, TWO).members == ("a", "b")
    assert not membership.is_given_up


ENGINES = st.lists(st.integers(0, 7), unique=True, max_size=6).map(
    lambda found: {f"rollout-{i}": f"node-{i % 3}" for i in sorted(found)}
)
SILENT = st.none() | st.frozensets(st.integers(0, 7).map(lambda i: f"rollout-{i}"), max_size=2)


@given(st.lists(st.tuples(ENGINES, st.integers(0, 20), SILENT), max_size=30))
def test_through_any_joins_deaths_and_failures_members_serve_at_most_one_of_each_node(
    versions: list[tuple[dict[str, str], int, frozenset[str] | None]],
) -> None:
    membership, formed, failures, newest = Membership(), None, 0, 0
    for node_of, luck, silent in versions:  # `silent` is None where the version arrives
        group = membership.next(incarnation := int(luck == 0), node_of)
        if group is None:
            assert not node_of or membership.is_given_up or membership._misses
            formed = None
            continue
        assert failures < MAX_FAILURES
        assert group.members
        assert [name for name in node_of if name in group.members] == [*group.members]
        assert len({node_of[name] for name in group.members}) == len(group.members)
        assert group.incarnation == incarnation
        assert group is formed or group.number > newest
        newest = max(newest, group.number)
        if silent is None:
            membership.succeeded(group)
            formed, failures = group, 0
        else:
            membership.failed(silent & set(group.members))
            formed, failures = None, failures + 1
        assert membership.formed is formed


@given(st.lists(ENGINES.filter(bool), min_size=1, max_size=20))
def test_without_failures_every_node_with_an_engine_is_reached(versions: list[dict[str, str]]) -> None:
    membership = Membership()
    for node_of in versions:
        members = succeed(membership, node_of).members
        assert {node_of[name] for name in members} == {*node_of.values()}
