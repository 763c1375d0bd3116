"""A weight update on the real path, beside generation, as `benchmarks/weights.py` measures it.

Local Ray, a rank-like actor that yields buckets (`weight_update_workers.Publisher`), the pool, the learner group
and the weight store of a run, and rollout workers with the real engine, which keep generating. The model is
random: the shape of SmolLM2-135M, 134.5 M parameters in bfloat16.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from cluster.connection import prepare_environment  # noqa: E402

prepare_environment()

from actors.engine import EngineSettings, Sampling  # noqa: E402
from actors.vllm import open_engine  # noqa: E402
from benchmarks.weight_update_workers import SIZES, Publisher, TimedWorker, save_model  # noqa: E402
from cluster.placement import Demand  # noqa: E402
from cluster.pool import Pool  # noqa: E402
from cluster.ray_actors import WorkerSpec  # noqa: E402
from cluster.waiting import Signal  # noqa: E402
from controller.learner_group import LearnerGroup  # noqa: E402
from controller.weight_store import LOAD_PARTS, WeightStore  # noqa: E402
from inputs.prompts import PromptSource  # noqa: E402
from inputs.rendering import Prompt  # noqa: E402
from records.events import Events  # noqa: E402
from records.files import read_rows  # noqa: E402
from settings.cluster import ClusterConfig  # noqa: E402
from settings.engine import EngineConfig  # noqa: E402

PROMPT_TOKENS, RESPONSE_TOKENS = 16, 64
PARTS = ("publish_s", *LOAD_PARTS, "stopped_s")


@dataclass(frozen=True)
class Scene:
    """A running pool that follows a weight store."""

    learner: LearnerGroup
    publisher: Any
    pool: Pool
    store: WeightStore
    events: Path


@asynccontextmanager
async def scene(options: argparse.Namespace, folder: Path) -> AsyncIterator[Scene]:
    """Start publisher and engines on a random model, load version 0, and keep the engines generating."""
    save_model(options.size, str(folder))
    config, events = ClusterConfig(), Events(folder / "events.jsonl")
    engine = EngineSettings(
        model_path=str(folder),
        dtype="bfloat16",
        device="cpu",
        seed=0,
        vocab_size=SIZES[options.size]["vocab_size"],
        stop_token_ids=(),
        shares_weights=options.delta or options.file,
        config=EngineConfig(max_model_len=512, max_num_seqs=options.sequences, kv_cache_gib=0.25),
    )
    publisher = WorkerSpec(
        Publisher, (str(folder),), {"changed": options.changed, "delta": options.delta}, is_async=False
    )
    rollout = WorkerSpec(TimedWorker, (engine, open_engine))
    tiny = {"CPU": 0.1}
    learners = Pool(Demand("learner", 1, tiny), lambda _: publisher, config=config, events=events)
    pool = Pool(Demand("rollout", options.engines, tiny), lambda _: rollout, config=config, events=events)
    learner = LearnerGroup(learners, config)
    tasks: list[asyncio.Task[None]] = []
    try:
        await learners.place()
        await pool.place()
        await asyncio.gather(learner.setup(), pool.start())
        signal = Signal()
        members = pool.signal = Signal(of=signal)
        store = WeightStore(pool, config=config, signal=signal, members=members, events=events)
        store.publish(await learner.publish(0, 0))
        tasks.append(asyncio.create_task(store.run()))
        await store.all_loaded()
        for worker in pool.workers:
            tasks += [asyncio.create_task(keep_generating(worker.handle, options, name)) for name in ("a", "b")]
        yield Scene(learner, learners.workers[0].handle, pool, store, folder / "events.jsonl")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(learners.close(), pool.close())


async def keep_generating(handle: Any, options: argparse.Namespace, name: str) -> None:
    """Let an engine generate without end; two of these keep it from ever being idle."""
    num_slots = max(1, options.sequences // 2)
    prompts = [Prompt(name, list(range(3, 3 + PROMPT_TOKENS)), answer=None, source="default")]
    while True:
        table = PromptSource(prompts, seed=0, num_samples=1, num_slots=num_slots).requests_for(
            range(num_slots), [0] * num_slots
        )
        sampling = Sampling(max_tokens=RESPONSE_TOKENS)
        async for item in handle.generate.options(num_returns="streaming").remote(table, sampling):
            await item


async def update(here: Scene, version: int, *, settle_s: float) -> dict[str, float]:
    """Publish one version while the engines generate; returns its seconds and bytes."""
    await here.publisher.change.remote(version)
    await asyncio.sleep(settle_s)
    since, start = time.time() - settle_s, time.perf_counter()
    here.store.publish(await here.learner.publish(0, version))
    await here.store.all_loaded()
    update_s = time.perf_counter() - start
    await asyncio.sleep(settle_s)
    gap_of = {worker.name: await worker.handle.longest_gap.remote(since) for worker in here.pool.workers}
    rows = [row for row in read_rows(here.events) if row.get("version") == version]
    loads = [row for row in rows if row["event"] == "weights_loaded"]
    (published,) = [row for row in rows if row["event"] == "weights_published"]
    return {
        **{part: max(row[part] for row in loads) for part in PARTS},
        "golden_s": await here.publisher.golden_s.remote(),
        "update_s": update_s,
        "gap_s": max(gap_of.values()),
        "num_fetches": sum(row["bytes_fetched"] > 0 for row in loads),
        "bytes": published["bytes"],
        "bytes_fetched": sum(row["bytes_fetched"] for row in loads),
    }
