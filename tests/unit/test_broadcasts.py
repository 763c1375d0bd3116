"""The controller's part of a broadcast, with members in this process and simulated time: calls and events."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.placement import Demand
from cluster.ray_actors import WorkerSpec
from commands.plan.local_pool import LocalPool
from commands.plan.run import run_virtually
from controller.broadcasts import MARGIN_S, MAX_FAILURES, WeightBroadcast
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
        await self.pool._create([worker])
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


def play(scene: Scene, course: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        await scene.open()
        await course

    run_virtually(main())


def test_a_group_is_formed_once_and_then_only_broadcast_in(scene: Scene) -> None:
    async def course() -> None:
        assert await scene.spread() == 2.0
        assert scene.learner.taken() == [("join", "2-1", 0, 3), ("send", 2, 0)]
        assert [e.taken() for e in scene.engines[:2]] == [
            [("join", "2-1", rank, 3), ("receive", 0)] for rank in (1, 2)
        ]
        assert await scene.spread() == 1.0
        assert scene.learner.taken() == [("send", 2, 1)]

    play(scene, course())
    assert [row["members"] for row in scene.events("weights_group")] == [["rollout-0", "rollout-1"]]
    assert [(row["version"], row["bytes"]) for row in scene.events("weights_broadcast")] == [(0, 10), (1, 10)]
    assert scene.events("weights_fallback") == []


def test_members_that_join_die_and_retire_form_it_anew(scene: Scene) -> None:
    async def course() -> None:
        await scene.spread()
        await scene.join()
        await scene.spread()
        scene.pool.mark_dead(scene.pool.workers[0], "killed")
        await scene.spread()
        scene.pool.drain(scene.pool.workers[1])
        await scene.spread()

    play(scene, course())
    assert [[name[-1] for name in row["members"]] for row in scene.events("weights_group")] == [
        ["0", "1"],
        ["0", "1", "2"],
        ["1", "2"],
        ["2"],
    ]


def test_a_failed_forming_is_a_fall_back_and_is_tried_again_at_the_next_version(scene: Scene) -> None:
    async def course() -> None:
        scene.engines[1].join_error = "no route"
        await scene.spread()
        assert [call for call in scene.learner.taken() if call != "forget"] == [("join", "2-1", 0, 3)]
        scene.engines[1].join_error = ""
        await scene.spread()
        assert scene.learner.taken() == [("join", "2-2", 0, 3), ("send", 2, 1)]

    play(scene, course())
    (row,) = scene.events("weights_fallback")
    assert (row["version"], row["incarnation"], row["again"]) == (0, 2, "next version")
    assert row["reason"] == "rollout-1: RayError: RuntimeError: no route"
    assert [row["version"] for row in scene.events("weights_broadcast")] == [1]


def test_what_is_not_sent_is_forgotten(scene: Scene) -> None:
    async def course() -> None:
        scene.engines[0].error = "damaged"
        await scene.spread()
        assert scene.learner.taken()[-1] == "forget"

    play(scene, course())


def test_an_engine_that_is_silent_costs_the_limit_twice_and_is_then_left_out(scene: Scene) -> None:
    async def course() -> None:
        await scene.spread()
        scene.engines[1].is_silent = True
        assert [await scene.spread() for _ in range(2)] == [LIMIT_S + MARGIN_S] * 2
        assert await scene.spread() == 2.0

    play(scene, course())
    fallbacks = scene.events("weights_fallback")
    assert [row["version"] for row in fallbacks] == [1, 2]
    assert fallbacks[0]["reason"] == (
        f"rollout-1: TimeoutError: no answer after {LIMIT_S + MARGIN_S:g} s from: rollout-1: the broadcast of v1"
    )
    assert scene.events("weights_broadcast")[-1]["members"] == ["rollout-0"]


def test_after_failures_in_a_row_the_object_store_serves_alone(scene: Scene) -> None:
    async def course() -> None:
        scene.learner.error = "no network"
        for _ in range(MAX_FAILURES):
            await scene.spread()
        scene.learner.error = ""
        scene.learner.taken()
        assert await scene.spread() == 0.0
        assert scene.learner.taken() == ["forget"]

    play(scene, course())
    assert [row["again"] for row in scene.events("weights_fallback")] == ["next version", "next version", "no"]
    assert scene.events("weights_broadcast") == []
