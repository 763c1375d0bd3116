"""Workers with a small engine of their own: groups, notes, scores, and what happens when the reader leaves."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.engine import EngineSettings, Generation, GenerationRequest, Sampling, TokenScores, Vitals
from actors.reference_worker import ReferenceWorker
from actors.rollout_worker import RolloutWorker
from actors.teacher_worker import TeacherWorker
from inputs.prompts import PromptSource
from inputs.rendering import Prompt
from settings.engine import EngineConfig
from tests.unit.buckets_in_place import BucketsInPlace
from transport.batches import ROLLOUT_SCHEMA, TeacherSignal, check_rollouts
from transport.notes import EndOfStream, LoadReport, Parcel, RolloutNote, ScoreNote
from transport.stop_tokens import StopTokens
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest

pytestmark = pytest.mark.timeout(20)

STOPS = StopTokens(student_ids=(90,), teacher_ids=(92,))
SETTINGS = EngineSettings("model", "float32", "cpu", 0, 100, STOPS.ids, EngineConfig())


class CountingEngine:
    """Responds to a request with `seed % 4 + 1` tokens, in the given order; scores a token with minus its id."""

    def __init__(self, order: Sequence[int] | None = None) -> None:
        self._order = order
        self.events: list[str] = []

    def vitals(self) -> Vitals:
        return Vitals(progress=len(self.events))

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        assert len({request.request_id for request in requests}) == len(requests)
        try:
            for index in self._order or range(len(requests)):
                await asyncio.sleep(0)
                yield self._respond(requests[index], sampling)
        finally:
            self.events.append("closed")

    def _respond(self, request: GenerationRequest, sampling: Sampling) -> Generation:
        length = request.seed % 4 + 1
        return Generation(
            request_id=request.request_id,
            token_ids=list(range(10, 10 + length)),
            log_probs=np.full(length, -0.5, dtype=np.float32),
            version_runs=[(2, 1), (3, length - 1)] if length > 1 else [(5, 1)],
            finish_reason="length" if length >= sampling.max_tokens else "stop",
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        self.events.append(f"score {len(sequences)}")
        return [TokenScores(-np.asarray(sequence[1:], dtype=np.float32)) for sequence in sequences]

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        self.events.append(f"load {manifest} {len(source.fetch())}")
        return LoadReport(0, 1, 0.0, 0.0, 0.0, 0.0, 0.0, bytes_fetched=0, golden_difference=0.0)

    def serve_own_weights(self) -> None:
        self.events.append("own weights")

    def shutdown(self) -> None:
        self.events.append("shutdown")


class BurstEngine(CountingEngine):
    """All responses are there at once."""

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        for request in requests:
            yield self._respond(request, sampling)


def requests(num_slots: int, num_samples: int = 2) -> pa.Table:
    prompts = [Prompt(f"p{i}", [1, 2, 3][: i % 3 + 1], answer=None, source="default") for i in range(7)]
    of = PromptSource(prompts, seed=0, num_samples=num_samples, num_slots=num_slots)
    return of.requests_for(range(num_slots), [1] * num_slots)


async def started(engine: CountingEngine) -> RolloutWorker:
    worker = RolloutWorker(SETTINGS, lambda _: engine)
    assert await worker.start() >= 0
    return worker


async def read(worker: RolloutWorker, table: pa.Table, sampling: Sampling) -> list[Any]:
    return [item async for item in worker.generate(table, sampling)]


def test_a_slot_is_yielded_when_its_last_response_has_come() -> None:
    async def work() -> list[Any]:
        engine = CountingEngine(order=[4, 0, 5, 2, 1, 3])
        return await read(await started(engine), requests(3), Sampling(max_tokens=4))

    *items, end = asyncio.run(work())
    assert end == EndOfStream(num_slots=3)
    assert [note.slot for parcel in items[0::2] for note in parcel.notes] == [2, 0, 1]
    for parcel, table in zip(items[0::2], items[1::2], strict=True):
        rows = check_rollouts(table).to_pylist()
        slots = [note.slot for note in parcel.notes]
        assert [(row["slot"], row["sample"]) for row in rows] == [(slot, i) for slot in slots for i in (0, 1)]


def test_slots_that_are_complete_together_share_a_parcel_up_to_its_size() -> None:
    async def work(num_slots: int) -> list[Any]:
        return await read(await started(BurstEngine()), requests(num_slots), Sampling(max_tokens=4))

    parcel, table, end = asyncio.run(work(40))
    assert sorted(note.slot for note in parcel.notes) == list(range(40))
    assert table.num_rows == 80
    assert end == EndOfStream(num_slots=40)
    *items, end = asyncio.run(work(2000))
    assert end == EndOfStream(num_slots=2000)
    sizes = [len(parcel.notes) for parcel in items[0::2]]
    assert sum(sizes) == 2000
    assert len(sizes) > 1, "2,000 slots do not fit into one parcel"
    assert [table.num_rows for table in items[1::2]] == [2 * size for size in sizes]


def test_a_note_says_what_its_table_holds() -> None:
    async def work() -> list[Any]:
        return await read(await started(CountingEngine()), requests(1, num_samples=8), Sampling(max_tokens=4))

    parcel, table, _ = asyncio.run(work())
    (note,) = parcel.notes
    rows = table.to_pylist()
    lengths = [row["seed"] % 4 + 1 for row in rows]
    assert note == RolloutNote(
        slot=0,
        attempt=1,
        uids=tuple(sorted(row["uid"] for row in rows)),
        num_tokens=sum(lengths) + 8 * len(rows[0]["prompt_token_ids"]),
        num_response_tokens=sum(lengths),
        num_truncated=lengths.count(4),
        oldest_version=2,
        newest_version=5 if 1 in lengths else 3,
        source="default",
    )
    assert [len(row["behaviour_log_probs"]) for row in rows] == lengths


def test_closing_the_stream_closes_the_engines_at_once() -> None:
    async def work() -> list[str]:
        engine = CountingEngine()
        items: Any = (await started(engine)).generate(requests(5), Sampling(max_tokens=4))
        assert isinstance(await anext(items), Parcel)
        await items.aclose()
        return engine.events

    assert asyncio.run(work()) == ["closed"]


def test_weights_and_the_end_are_handed_on() -> None:
    async def work() -> list[str]:
        engine = CountingEngine()
        worker = await started(engine)
        manifest: Any = "manifest"
        await worker.load_weights(manifest, BucketsInPlace([np.zeros(1, np.uint8)] * 2))
        await worker.serve_own_weights()
        await worker.shutdown()
        return engine.events

    assert asyncio.run(work()) == ["load manifest 2", "own weights", "shutdown"]


def rollouts(slot: int, *responses: list[int]) -> pa.Table:
    rows = [
        {
            "uid": f"{slot}-{sample}",
            "slot": slot,
            "attempt": 0,
            "prompt_id": "p",
            "sample": sample,
            "seed": 0,
            "source": "default",
            "answer": None,
            "prompt_token_ids": [1] * (slot + 1),
            "response_token_ids": response,
            "behaviour_log_probs": [-1.0] * len(response),
            "weight_versions": [{"version": 1, "num_tokens": len(response)}],
            "finish_reason": "length",
        }
        for sample, response in enumerate(responses)
    ]
    return pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)


def test_a_teacher_scores_all_sequences_together_and_returns_the_response_part() -> None:
    async def work() -> tuple[CountingEngine, Any]:
        engine = CountingEngine()
        worker = TeacherWorker(SETTINGS, lambda _: engine, stop_mode="cross_eos", stops=STOPS)
        await worker.start()
        return engine, await worker.score(rollouts(3, [7, 8], [9, 90]), rollouts(0, [5], [90]))

    engine, (note, first, second) = asyncio.run(work())
    assert engine.events == ["own weights", "score 4"]
    assert isinstance(note, ScoreNote)
    assert note.num_tokens == 6 + 6 + 2 + 2
    assert first.column("teacher_target_ids").to_pylist() == [[7, 8], [9, 92]]
    assert first.column("teacher_log_probs").to_pylist() == [[-7.0, -8.0], [-9.0, -92.0]]
    assert second.column("teacher_target_ids").to_pylist() == [[5], [92]]
    assert second.column("teacher_log_probs").to_pylist() == [[-5.0], [-92.0]]


def test_a_reference_adds_its_log_probs_of_its_own_labels_to_scored_tables() -> None:
    stops = StopTokens((90,), (92,), reference_ids=(94,))
    signal = TeacherSignal(has_reference=True)

    async def work() -> tuple[CountingEngine, Any]:
        engine = CountingEngine()
        teacher = TeacherWorker(SETTINGS, lambda _: CountingEngine(), stop_mode="cross_eos", stops=stops)
        labels: dict[str, Any] = {"stop_mode": "cross_eos", "stops": stops}
        reference = ReferenceWorker(SETTINGS, lambda _: engine, signal=signal, **labels)
        await teacher.start()
        await reference.start()
        _, *scored = await teacher.score(rollouts(3, [7, 8], [9, 90]), rollouts(0, [5], [90]))
        return engine, await reference.score(*scored)

    engine, (note, first, second) = asyncio.run(work())
    assert engine.events == ["own weights", "score 4"]
    assert note.num_tokens == 6 + 6 + 2 + 2
    assert first.column("teacher_log_probs").to_pylist() == [[-7.0, -8.0], [-9.0, -92.0]]
    assert first.column("reference_log_probs").to_pylist() == [[-7.0, -8.0], [-9.0, -94.0]]
    assert second.column("reference_log_probs").to_pylist() == [[-5.0], [-94.0]]


def test_a_reference_refuses_rollouts_that_no_teacher_has_scored() -> None:
    async def work() -> None:
        signal = TeacherSignal(has_reference=True)
        worker = ReferenceWorker(SETTINGS, lambda _: CountingEngine(), signal=signal, stop_mode="raw", stops=STOPS)
        await worker.start()
        await worker.score(rollouts(3, [7]))

    with pytest.raises(ValueError, match="column teacher_target_ids is missing"):
        asyncio.run(work())


def test_a_teacher_grades_every_response_against_its_answer_where_outcomes_are_asked_for() -> None:
    def grade(responses: Sequence[Sequence[int]], answers: Sequence[str]) -> list[bool]:
        return [str(sum(ids)) == answer for ids, answer in zip(responses, answers, strict=True)]

    async def work(answers: list[str | None]) -> Any:
        worker = TeacherWorker(SETTINGS, lambda _: CountingEngine(), stop_mode="raw", stops=STOPS, grade=grade)
        await worker.start()
        table = rollouts(3, [7, 8], [9, 9])
        field = ROLLOUT_SCHEMA.field("answer")
        index = ROLLOUT_SCHEMA.get_field_index("answer")
        return await worker.score(table.set_column(index, field, pa.array(answers, field.type)))

    _, table = asyncio.run(work(["15", "15"]))
    assert table.column("outcome_scores").to_pylist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="prompt 'p' has no answer to grade against"):
        asyncio.run(work(["15", None]))
