"""The parts of a step by this project's workers, without Ray: the same work as in `raw_parts.py`.

    rollout   RolloutWorker: requests as an Arrow table in, rollout tables out
    scoring   TeacherWorker: rollout tables in, scored tables out, in calls of `teacher.max_batch_tokens`

Each function measures in this process, which must be new.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pyarrow as pa

from actors.engine import EngineSettings, Generation, Sampling
from actors.rollout_worker import Finished, RolloutWorker, rollout_table
from actors.teacher_worker import TeacherWorker
from actors.vllm import open_engine
from benchmarks.raw_parts import SEED, timed, token_ids
from benchmarks.workload import Workload
from inputs.prompts import Prompt, PromptSource
from settings.engine import EngineConfig
from transport.batches import SAMPLED, TeacherSignal
from transport.parcels import plan_parcels
from transport.stop_tokens import StopTokens

STOPS = StopTokens((1,), (1,), {"teacher": (1,)})


def _settings(path: str, dtype: str, workload: Workload, threads: int, **further: Any) -> EngineSettings:
    config = EngineConfig(max_model_len=workload.sequence_tokens + 8, kv_cache_gib=1.0, num_threads=threads)
    return EngineSettings(
        model_path=path,
        dtype=dtype,
        device="cpu",
        seed=SEED,
        vocab_size=vocabulary(path),
        stop_token_ids=(stop_id(path),),
        config=config,
        **further,
    )


def vocabulary(path: str) -> int:
    """Number of embedding rows of a model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).vocab_size


def stop_id(path: str) -> int:
    """The stop token of a model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).eos_token_id


def _in_loop(loop: asyncio.AbstractEventLoop, step: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    return lambda: loop.run_until_complete(step())  # pyright: ignore[reportArgumentType]


def rollout(workload: Workload, dtype: str, repeats: int, *, threads: int) -> dict[str, float]:
    """Seconds that a rollout worker takes for the responses of one step."""
    loop = asyncio.new_event_loop()
    worker = RolloutWorker(_settings(str(workload.student), dtype, workload, threads), open_engine)
    loop.run_until_complete(worker.start())
    loop.run_until_complete(worker.serve_own_weights())
    prompts = [
        Prompt(f"p{i}", ids, answer=None, source="default") for i, ids in enumerate(token_ids(workload, 256))
    ]
    source = PromptSource(prompts, seed=SEED, num_samples=1, num_slots=10_000)
    sampling = Sampling(workload.response_tokens, top_p=workload.top_p, top_k=workload.top_k)
    first = iter(range(0, 10_000, workload.batch_size))

    async def step() -> None:
        start = next(first)
        slots = range(start, start + workload.batch_size)
        tables: list[Any] = [
            item
            async for item in worker.generate(source.requests_for(slots, [0] * len(slots)), sampling)
            if isinstance(item, pa.Table)
        ]
        lengths = {len(row) for table in tables for row in table.column("response_token_ids")}
        assert lengths == {workload.response_tokens}, lengths

    measured = timed(_in_loop(loop, step), repeats)
    loop.run_until_complete(worker.shutdown())
    return measured


def scoring(
    workload: Workload,
    dtype: str,
    repeats: int,
    *,
    threads: int,
    k: int = 0,
    call_tokens: int = 16384,
    batch_tokens: int | None = None,
) -> dict[str, float]:
    """Seconds that a teacher worker takes for the scores of one step's sequences."""
    loop = asyncio.new_event_loop()
    signal = TeacherSignal("topk", k=k) if k else SAMPLED
    settings = _settings(str(workload.teacher), dtype, workload, threads, signal=signal)
    if batch_tokens is not None:
        config = settings.config.model_copy(update={"max_num_batched_tokens": batch_tokens})
        settings = EngineSettings(**{**vars(settings), "config": config})
    worker = TeacherWorker(settings, open_engine, stop_mode="raw", stops=STOPS)
    loop.run_until_complete(worker.start())
    rng = np.random.default_rng(SEED)

    async def step() -> None:
        tables = [rollout_table([[each] for each in group]) for group in _groups(workload, rng, call_tokens)]
        for table in tables:
            parcels = plan_parcels((slot, 4096) for slot in table.column("slot").to_pylist())
            scored: list[Any]
            _, *scored = await worker.score(table, parcels=parcels)
            assert sum(part.num_rows for part in scored) == table.num_rows

    measured = timed(_in_loop(loop, step), repeats)
    loop.run_until_complete(worker.shutdown())
    return measured


def _groups(workload: Workload, rng: np.random.Generator, call_tokens: int) -> list[list[Finished]]:
    """The sequences of a step, as many together as a call takes."""
    per_call = max(1, call_tokens // workload.sequence_tokens)
    found = [_random_rollout(workload, slot, rng) for slot in range(workload.batch_size)]
    return [found[first : first + per_call] for first in range(0, len(found), per_call)]


def _random_rollout(workload: Workload, slot: int, rng: np.random.Generator) -> Finished:
    prompt = Prompt("p", rng.integers(2, 4096, workload.prompt_tokens).tolist(), answer=None, source="default")
    row = PromptSource([prompt], seed=SEED, num_samples=1, num_slots=1).requests_for([0], [0]).to_pylist()[0]
    response = rng.integers(2, 4096, workload.response_tokens).tolist()
    log_probs = np.full(len(response), -8.0, dtype=np.float32)
    generation = Generation(str(slot), response, log_probs, [(0, len(response))], "length")
    return Finished(row | {"slot": slot, "uid": f"{slot}-0-p-0"}, generation)
