"""Rollout and teacher workers with real engines; the rollout worker behind Ray, as the pool runs it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from actors.engine import Engine, EngineSettings, Sampling
from actors.rollout_worker import RolloutWorker, StreamItem
from actors.teacher_worker import TeacherWorker
from actors.vllm import open_engine
from inputs.prompts import PromptSource
from inputs.rendering import Prompt
from tests.integration.test_engine_scene import (
    exact_log_probs,
    opened,
    perturb,
    prompt_of,
    publish,
    read_model,
    run,
    save_model,
    settings,
)
from transport.batches import ROLLOUT_SCHEMA, check_rollouts, check_scored
from transport.notes import EndOfStream, LoadReport, Parcel, ScoreNote
from transport.parcels import tables_of_slots
from transport.stop_tokens import StopMode, StopTokens
from transport.weight_sources import ObjectStoreSource, WeightSource
from transport.weights import WeightManifest

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
NUM_SLOTS = 400
STOPS = StopTokens(student_ids=(60, 61), teacher_ids=(61, 62))


class ProbedWorker:
    """A rollout worker whose stream and engine can be watched from outside."""

    def __init__(self, settings: EngineSettings, open_engine: Callable[[EngineSettings], Engine]) -> None:
        self._engine: Any = None
        self._worker = RolloutWorker(settings, self._open)
        self._open_engine = open_engine
        self._num_yielded = 0

    def _open(self, settings: EngineSettings) -> Engine:
        self._engine = self._open_engine(settings)
        return self._engine

    async def start(self) -> float:
        return await self._worker.start()

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        return await self._worker.load_weights(manifest, source)

    async def generate(self, prompts: pa.Table, sampling: Sampling) -> AsyncIterator[StreamItem]:
        self._num_yielded = 0
        async for item in self._worker.generate(prompts, sampling):
            self._num_yielded += 1
            yield item

    async def num_yielded(self) -> int:
        return self._num_yielded

    async def num_unfinished(self) -> int:
        return self._engine._engine.get_num_unfinished_requests()

    async def shutdown(self) -> None:
        await self._worker.shutdown()


@pytest.fixture(scope="module")
def student_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("teacher"), tied=False, seed=2)


@pytest.fixture(scope="module")
def rollout_actor(local_ray: None, student_path: str) -> Iterator[Any]:
    engine_settings = settings(student_path, stops=STOPS.ids, max_num_seqs=16)
    actor: Any = ray.remote(ProbedWorker).options(max_concurrency=100).remote(engine_settings, open_engine)
    assert get(actor.start.remote(), timeout_s=500) > 0
    manifest, buckets = publish(read_model(student_path), 3)
    report: LoadReport = get(actor.load_weights.remote(manifest, stored(buckets)))
    assert report.version == 3
    yield actor
    get(actor.shutdown.remote(), timeout_s=200)
    ray.kill(actor)


def stored(buckets: list[np.ndarray]) -> ObjectStoreSource:
    return ObjectStoreSource(tuple(map(ray.put, buckets)), (), timeout_s=60.0)


def get(ref: Any, *, timeout_s: float = 300.0) -> Any:
    return ray.get(ref, timeout=timeout_s)


def prompt_source(num_samples: int = 2) -> PromptSource:
    prompts = [Prompt(f"p{i}", prompt_of(i), answer=None, source="default") for i in range(20)]
    return PromptSource(prompts, seed=0, num_samples=num_samples, num_slots=NUM_SLOTS)


def slots_table(num_slots: int) -> pa.Table:
    return prompt_source().requests_for(range(num_slots), [0] * num_slots)


def wait_until(predicate: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_groups_come_as_note_and_table_and_the_stream_ends_with_its_end(
    rollout_actor: Any, student_path: str
) -> None:
    stream = rollout_actor.generate.options(num_returns="streaming").remote(slots_table(12), Sampling(40))
    *items, end = [get(ref) for ref in stream]
    assert end == EndOfStream(num_slots=12)
    parcels: list[Parcel] = items[0::2]
    slots = [[note.slot for note in parcel.notes] for parcel in parcels]
    assert sorted(slot for parcel in slots for slot in parcel) == list(range(12))
    model = read_model(student_path)
    assert all(check_rollouts(table).schema == ROLLOUT_SCHEMA for table in items[1::2])
    assert [sorted({*table.column("slot").to_pylist()}) for table in items[1::2]] == list(map(sorted, slots))
    notes = [note for parcel in parcels for note in parcel.notes]
    tables = tables_of_slots(items[1::2], [note.slot for note in notes])
    for note, table in zip(notes, tables, strict=True):
        rows = table.to_pylist()
        assert [row["sample"] for row in rows] == [0, 1]
        assert note.uids == tuple(sorted(row["uid"] for row in rows))
        assert {(row["slot"], row["attempt"]) for row in rows} == {(note.slot, note.attempt)}
        assert note.num_response_tokens == sum(len(row["response_token_ids"]) for row in rows)
        assert note.num_tokens == note.num_response_tokens + sum(len(row["prompt_token_ids"]) for row in rows)
        assert note.num_truncated == sum(row["finish_reason"] == "length" for row in rows)
        assert (note.oldest_version, note.newest_version) == (3, 3)
        for row in rows:
            exact = exact_log_probs(model, row["prompt_token_ids"], row["response_token_ids"])
            assert np.abs(np.asarray(row["behaviour_log_probs"]) - exact).max() < 1e-4
            ends = [token_id in STOPS.ids for token_id in row["response_token_ids"]]
            assert sum(ends) == (row["finish_reason"] == "stop")


def test_a_repeated_attempt_draws_the_same_responses(rollout_actor: Any) -> None:
    def responses(attempt: int) -> dict[str, list[int]]:
        table = prompt_source().requests_for([3, 5], [attempt] * 2)
        stream = rollout_actor.generate.options(num_returns="streaming").remote(table, Sampling(20))
        tables = [item for item in (get(ref) for ref in stream) if isinstance(item, pa.Table)]
        return {row["uid"]: row["response_token_ids"] for table in tables for row in table.to_pylist()}

    assert responses(0) == responses(1)


def test_a_stream_that_is_not_read_stops_at_its_limit(rollout_actor: Any) -> None:
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 4}
    stream = rollout_actor.generate.options(**options).remote(slots_table(100), Sampling(5))
    first = get(next(stream))
    assert isinstance(first, Parcel)
    wait_until(lambda: get(rollout_actor.num_unfinished.remote()) == 0, timeout_s=60)
    time.sleep(0.5)
    assert get(rollout_actor.num_yielded.remote()) <= 6
    items = [first, *(get(ref) for ref in stream)]
    assert sorted(note.slot for parcel in items[:-1:2] for note in parcel.notes) == list(range(100))
    assert items[-1] == EndOfStream(num_slots=100)


def test_a_cancelled_stream_frees_the_engine(rollout_actor: Any) -> None:
    stream = rollout_actor.generate.options(num_returns="streaming").remote(slots_table(NUM_SLOTS), Sampling(200))
    assert isinstance(get(next(stream)), Parcel)
    assert get(rollout_actor.num_unfinished.remote()) > 100
    ray.cancel(stream)
    wait_until(lambda: get(rollout_actor.num_unfinished.remote()) == 0, timeout_s=60)


def test_a_stream_cancelled_while_its_items_are_not_taken_frees_the_engine(rollout_actor: Any) -> None:
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
    stream = rollout_actor.generate.options(**options).remote(slots_table(NUM_SLOTS), Sampling(200))
    assert isinstance(get(next(stream)), Parcel)
    wait_until(lambda: get(rollout_actor.num_yielded.remote()) >= 2, timeout_s=60)
    ray.cancel(stream)
    wait_until(lambda: get(rollout_actor.num_unfinished.remote()) == 0, timeout_s=60)


def test_refused_weights_and_prompts_reach_the_caller_as_plain_errors(
    rollout_actor: Any, student_path: str
) -> None:
    model = read_model(student_path)
    perturb(model)
    manifest, buckets = publish(model, 4)
    buckets[0] = buckets[0] ^ 1
    with pytest.raises(ValueError, match="checksum of bucket 0 differs"):
        get(rollout_actor.load_weights.remote(manifest, stored(buckets)))
    prompts = [Prompt("long", [5] * 300, answer=None, source="default")]
    table = PromptSource(prompts, seed=0, num_samples=1, num_slots=1).requests_for([0], [0])
    stream = rollout_actor.generate.options(num_returns="streaming").remote(table, Sampling(5))
    with pytest.raises(ValueError, match="300 input tokens") as caught:
        get(next(stream))
    error: Any = caught.value
    assert type(error.cause) is ValueError


@pytest.fixture(scope="module")
def teacher_engine(teacher_path: str) -> Iterator[Engine]:
    with opened(settings(teacher_path)) as engine:
        yield engine


def rollouts(slot: int) -> pa.Table:
    """Two responses: the first is truncated, the second ends with the student's stop token."""
    rows = []
    for sample, response in enumerate(([9, 14 + slot, 33], [8, 20, 40 - slot, 60])):
        rows.append(
            {
                "uid": f"{slot}-0-p-{sample}",
                "slot": slot,
                "attempt": 0,
                "prompt_id": "p",
                "sample": sample,
                "seed": 0,
                "source": "default",
                "answer": None,
                "prompt_token_ids": prompt_of(slot),
                "response_token_ids": response,
                "behaviour_log_probs": [-1.0] * len(response),
                "weight_versions": [{"version": 1, "num_tokens": len(response)}],
                "finish_reason": "stop" if sample else "length",
            }
        )
    return pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)


@pytest.mark.parametrize(("stop_mode", "last"), [("raw", 60), ("mask", 60), ("cross_eos", 61)])
def test_a_teacher_scores_exactly_the_response_tokens_with_its_own_stop(
    teacher_engine: Engine, teacher_path: str, stop_mode: StopMode, last: int
) -> None:
    model = read_model(teacher_path)
    worker = TeacherWorker(settings(teacher_path), lambda _: teacher_engine, stop_mode=stop_mode, stops=STOPS)
    tables = [rollouts(slot) for slot in (4, 0, 2)]

    async def work() -> list[tuple[Any, ...]]:
        await worker.start()
        return list(await asyncio.gather(worker.score(*tables), worker.score(tables[1]), worker.score()))

    (note, *scored), (_, alone), nothing = run(work())
    assert isinstance(note, ScoreNote)
    assert note.num_tokens == sum(len(prompt_of(slot)) * 2 + 7 for slot in (4, 0, 2))
    assert len(nothing) == 1
    assert [table.column("slot").to_pylist() for table in scored] == [[4, 4], [0, 0], [2, 2]]
    for table, original in zip([*scored, alone], [*tables, tables[1]], strict=True):
        assert check_scored(table).select(ROLLOUT_SCHEMA.names).equals(original)
        for row in table.to_pylist():
            target = list(row["response_token_ids"])
            if row["finish_reason"] == "stop":
                target[-1] = last
            assert row["teacher_target_ids"] == target
            exact = exact_log_probs(model, row["prompt_token_ids"], target)
            assert np.abs(np.asarray(row["teacher_log_probs"]) - exact).max() < 1e-4
