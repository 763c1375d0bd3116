"""What a weight update costs: publish, fetch, check, pause, load, verify, and the longest gap between two tokens.

    .venv/bin/python benchmarks/weight_update.py --runs 5                  # one engine
    .venv/bin/python benchmarks/weight_update.py --engines 2 --file        # two share a file: they fetch once
    .venv/bin/python benchmarks/weight_update.py --delta --changed 0.05    # differences only

The real path: local Ray, a rank-like actor that yields buckets (`weight_update_workers.Publisher`), the pool, the
learner group and the weight store of a run, and rollout workers with the real engine, which go on generating. The
model is random: the shape of SmolLM2-135M, 134.5 M parameters in bfloat16. A run is one update. Prints one JSON
row: each part in seconds, the slower engine of an update counting.

    update_s     from the call of publish until the last engine has verified the version
    stopped_s    pause + load + verify: the engine makes no token. The step that verifies also computes the cache
                 of the responses in flight again, so that it grows with `--sequences`
    gap_s        longest time between the ends of two engine steps while an update ran
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from cluster.connection import connected, prepare_environment  # noqa: E402

prepare_environment()

from actors.engine import EngineSettings, Sampling  # noqa: E402
from actors.vllm import open_engine  # noqa: E402
from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402
from benchmarks.weight_update_workers import SIZES, Publisher, TimedWorker, save_model  # noqa: E402
from cluster.placement import Demand  # noqa: E402
from cluster.pool import Pool  # noqa: E402
from cluster.ray_actors import WorkerSpec  # noqa: E402
from cluster.waiting import Signal  # noqa: E402
from controller.learner_group import LearnerGroup  # noqa: E402
from controller.weight_store import LOAD_PARTS, WeightStore  # noqa: E402
from inputs.prompts import Prompt, PromptSource  # noqa: E402
from records.events import Events  # noqa: E402
from records.files import read_rows  # noqa: E402
from settings.cluster import ClusterConfig  # noqa: E402
from settings.run import EngineConfig  # noqa: E402

PROMPT_TOKENS, RESPONSE_TOKENS = 16, 64
PARTS = ("publish_s", *LOAD_PARTS, "stopped_s")
RATIOS = (
    Ratio("gap_s", "update", "update", denominator_key="load_s"),
    Ratio("stopped_s", "update", "update", denominator_key="load_s"),
)


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


async def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """Make all updates one after the other; returns those that count."""
    with tempfile.TemporaryDirectory(prefix="weight-update-") as folder:
        async with scene(options, Path(folder)) as here:
            versions = range(1, 1 + options.warmup + options.runs)
            updates = [await update(here, version, settle_s=options.settle_s) for version in versions]
            return updates[options.warmup :]


def main() -> None:
    """Measure and print one row."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=16, help="responses in flight on one engine")
    parser.add_argument("--changed", type=float, default=0.05, help="share of weights that a version changes")
    parser.add_argument("--delta", action="store_true", help="publish differences too (weights.delta)")
    parser.add_argument("--file", action="store_true", help="engines of the node share a file, as with --delta")
    parser.add_argument("--settle-s", type=float, default=2.0, help="generation before and after an update")
    options = parser.parse_args()
    with connected(ClusterConfig(num_cpus=4, object_store_gib=1.5), lambda nodes, is_local: None):
        updates = asyncio.run(measure(options))
    emit(result_row("weight_update", vars(options), {"update": updates}, RATIOS), is_saved=options.save)


if __name__ == "__main__":
    main()
