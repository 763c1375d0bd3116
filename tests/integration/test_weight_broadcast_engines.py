"""Weights by broadcast to real engines: a group is formed, used, broken by a death or a pause, formed again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.engine import Sampling
from actors.rollout_worker import RolloutWorker
from actors.vllm import open_engine
from actors.vllm.shared_file import PREFIX, SHARED_MEMORY
from cluster.placement import Demand
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.waiting import Signal
from cluster.worker import Worker
from controller.broadcasts import MARGIN_S, WeightBroadcast
from controller.learner_group import LearnerGroup
from controller.weight_store import WeightStore
from inputs.prompts import PromptSource
from inputs.rendering import Prompt
from learner.rank import LearnerRank
from learner.weight_sender import WeightSender
from records.events import Events
from records.files import read_rows
from settings.cluster import ClusterConfig
from tests.integration.test_engine_scene import perturb, publish, read_model, run, save_model, settings, until
from transport.collective import Rendezvous
from transport.notes import Heartbeat
from transport.weights import WeightManifest

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

TINY = {"CPU": 0.1}
LIMIT_S = 30.0


class EngineWithPid(RolloutWorker):
    """Says which process it is."""

    async def pid(self) -> int:
        """Of the process with the engine and the receiver."""
        return os.getpid()


class Publisher:
    """A learner's rank that only publishes, and changes its weights before each version but the first."""

    def __init__(self, path: str) -> None:
        self._model = read_model(path)
        self._sender = WeightSender()
        self.is_local = True  # as a rank knows it

    def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat()

    def rendezvous(self) -> tuple[str, int]:
        """As a rank does."""
        return LearnerRank.rendezvous(self)  # pyright: ignore[reportArgumentType]

    def setup(self, address: str, port: int) -> None:
        """There is one rank."""

    def publish(self, incarnation: int, version: int) -> Iterator[np.ndarray | WeightManifest]:
        """Buckets, then the manifest."""
        if version:
            perturb(self._model, "layers.1.", seed=version)
        manifest, buckets = publish(self._model, version, incarnation=incarnation)
        yield from self._sender.keeping([*buckets, manifest])

    def join_weight_group(self, rendezvous: Rendezvous) -> None:
        """As a rank does."""
        self._sender.join(rendezvous)

    def send_weights(self, incarnation: int, version: int) -> float:
        """As a rank does."""
        return self._sender.send(incarnation, version)

    def forget_weights(self) -> None:
        """As a rank does."""
        self._sender.forget()

    def shutdown(self) -> None:
        """There is nothing to stop."""


class Scene:
    """A publisher and engines that follow a store."""

    def __init__(self, path: Path, *, limit_s: float) -> None:
        model_path = save_model(path / "student")
        config, self._events = ClusterConfig(), Events(path / "events.jsonl")
        self._path = path / "events.jsonl"
        publisher = WorkerSpec(Publisher, (model_path,), is_async=False)
        engine = WorkerSpec(EngineWithPid, (settings(model_path, max_num_seqs=8), open_engine))
        shared: dict[str, Any] = {"config": config, "events": self._events}
        self.learners = Pool(Demand("learner", 1, TINY), lambda _: publisher, **shared)
        self.pool = Pool(Demand("rollout", 2, TINY), lambda _: engine, **shared)
        broadcasts = WeightBroadcast(
            "gloo", learner=self.learners, engines=self.pool, events=self._events, timeout_s=limit_s
        )
        self._learner = LearnerGroup(self.learners, config, transport="gloo", broadcasts=broadcasts)
        signal = Signal()
        self.pool.signal = Signal(of=signal)
        self.store = WeightStore(
            self.pool, config=config, signal=signal, members=self.pool.signal, events=self._events
        )

    async def open(self) -> None:
        """Start all; each engine counts as being on a node of its own, so that each is a member."""
        await self.learners.place()
        await self.pool.place()
        for worker in self.pool.workers:
            worker.node_id = worker.name
        await asyncio.gather(self._learner.setup(), self.pool.start())

    async def add(self) -> Worker:
        """Start one more engine, which serves once it holds the newest version."""
        worker = self.pool.add()
        await self.pool.create([worker])
        await self.pool.launch(worker, "test")
        worker.node_id = worker.name
        self.pool.make_stale(worker)
        await self.pool.signal.until(lambda: worker.is_healthy, timeout_s=300, what=lambda: "the added engine")
        return worker

    async def publish(self, version: int) -> None:
        """Publish a version and wait until every engine that lives has loaded and verified it."""
        await self.put(version)
        await self.store.all_loaded()

    async def put(self, version: int) -> None:
        """Publish a version."""
        self.store.publish(await self._learner.publish(0, version))

    def rows(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        return [
            row
            for row in read_rows(self._path)
            if row["event"] == event and all(row[key] == value for key, value in wanted.items())
        ]

    def fetched(self, version: int) -> dict[str, int]:
        """Bytes that each engine fetched for a version, all of which were verified."""
        rows = self.rows("weights_loaded", version=version)
        assert max(row["golden_difference"] for row in rows) < 1e-4
        return {row["worker"]: row["bytes_fetched"] for row in rows}


@asynccontextmanager
async def opened(path: Path, *, limit_s: float = LIMIT_S) -> AsyncIterator[Scene]:
    scene = Scene(path, limit_s=limit_s)
    following: list[asyncio.Task[None]] = []
    try:
        await scene.open()
        following.append(asyncio.create_task(scene.store.run()))
        yield scene
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await asyncio.gather(scene.learners.close(), scene.pool.close())


async def generate(worker: Worker) -> list[int]:
    """Let an engine generate; returns the weight versions of its tokens."""
    prompts = PromptSource([Prompt("p", [5, 6, 7], answer=None, source="a")], seed=0, num_samples=1, num_slots=1)
    stream = worker.handle.generate.options(num_returns="streaming").remote(
        prompts.requests_for(range(1), [0]), Sampling(max_tokens=8)
    )
    items = [await item async for item in stream]
    return [run["version"] for run in items[1].column("weight_versions").to_pylist()[0]]


def staged() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"{PREFIX}*")}


def test_a_group_is_formed_used_broken_and_formed_again(local_ray: None, tmp_path: Path) -> None:
    before = staged()

    async def story() -> None:
        async with opened(tmp_path) as scene:
            for version in (0, 1):
                await scene.publish(version)
                assert scene.fetched(version) == {"rollout-0": 0, "rollout-1": 0}
                assert [await generate(worker) for worker in scene.pool.healthy] == [[version]] * 2
            assert len(staged() - before) == 1

            ray.kill(scene.pool.workers[1].handle)
            await scene.publish(2)
            (published,) = scene.rows("weights_published", version=2)
            assert scene.fetched(2) == {"rollout-0": published["bytes"]}
            assert [worker.name for worker in scene.pool.healthy] == ["rollout-0"]

            added = await scene.add()
            await scene.publish(3)
            assert scene.fetched(3) == {"rollout-0": 0, "rollout-2": 0}
            assert await generate(added) == [3]

            groups = [(row["group"], row["members"]) for row in scene.rows("weights_group")]
            assert groups == [(1, ["rollout-0", "rollout-1"]), (2, ["rollout-0", "rollout-2"])]
            assert [row["version"] for row in scene.rows("weights_broadcast")] == [0, 1, 3]
            (fallback,) = scene.rows("weights_fallback")
            assert (fallback["version"], fallback["again"]) == (2, "next version")
            assert "rollout-1: ActorDiedError" in fallback["reason"]
            assert fallback["seconds"] < LIMIT_S

    run(story(), timeout_s=800.0)
    assert staged() == before


def test_a_paused_engine_costs_the_limit_once_and_is_a_member_again_when_it_goes_on(
    local_ray: None, tmp_path: Path
) -> None:
    limit_s = 10.0

    async def story() -> None:
        async with opened(tmp_path, limit_s=limit_s) as scene:
            await scene.publish(0)
            paused = scene.pool.workers[1]
            pid = await paused.handle.pid.remote()
            os.kill(pid, signal.SIGSTOP)
            try:
                start = time.monotonic()
                await scene.put(1)
                assert time.monotonic() - start < limit_s + MARGIN_S + 5
                await until(lambda: scene.pool.workers[0].version == 1, timeout_s=200)
                assert paused.version == 0
            finally:
                os.kill(pid, signal.SIGCONT)
            await scene.store.all_loaded()
            await scene.publish(2)
            assert scene.fetched(2) == {"rollout-0": 0, "rollout-1": 0}
            (fallback,) = scene.rows("weights_fallback")
            assert "rollout-1: TimeoutError: no answer after 15 s" in fallback["reason"]
            assert [row["members"] for row in scene.rows("weights_group")] == [["rollout-0", "rollout-1"]] * 2

    run(story(), timeout_s=800.0)
