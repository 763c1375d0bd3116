"""Responses of a running engine: what is sampled, when it ends, in which order it comes, and what is aborted."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from actors.engine import Generation, GenerationRequest, Sampling, TokenScores
from tests.integration.test_engine_scene import (
    Student,
    collect,
    exact_log_probs,
    opened,
    read_model,
    requests,
    run,
    save_model,
    settings,
    until,
)

pytestmark = pytest.mark.timeout(600)

KNOWN_IDS = 40
"""The tokenizer's size; the model has 64 rows."""

STOPS = (7, 21)
NUM_SEQS = 16


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Student]:
    path = save_model(tmp_path_factory.mktemp("student"), seed=3)
    with opened(settings(path, vocab_size=KNOWN_IDS, stops=STOPS, max_num_seqs=NUM_SEQS)) as engine:
        engine.serve_own_weights()
        yield Student(engine, path, read_model(path))


def test_padded_ids_are_never_sampled_and_log_probs_stay_raw(student: Student) -> None:
    wanted = requests(60)
    num_tokens = 0
    for sampling in (Sampling(max_tokens=30), Sampling(max_tokens=10, temperature=0.0)):
        for found in run(collect(student.engine, wanted, sampling)):
            exact = exact_log_probs(student.model, wanted[found.request_id].prompt_token_ids, found.token_ids)
            assert max(found.token_ids) < KNOWN_IDS
            assert np.abs(found.log_probs - exact).max() < 1e-4
            num_tokens += len(found.token_ids)
    assert num_tokens > 500


def test_log_probs_are_those_before_temperature_and_truncation(student: Student) -> None:
    wanted = requests(4)
    for found in run(collect(student.engine, wanted, Sampling(20, temperature=0.7, top_p=0.9, top_k=8))):
        exact = exact_log_probs(student.model, wanted[found.request_id].prompt_token_ids, found.token_ids)
        assert np.abs(found.log_probs - exact).max() < 1e-4


def test_the_stop_ids_of_both_sides_end_a_response_and_belong_to_it(student: Student) -> None:
    last = set()
    for found in run(collect(student.engine, requests(60), Sampling(max_tokens=40))):
        assert not set(found.token_ids[:-1]) & set(STOPS)
        assert len(found.log_probs) == len(found.token_ids) <= 40
        assert found.version_runs == [(0, len(found.token_ids))]
        if found.token_ids[-1] in STOPS:
            assert found.finish_reason == "stop"
            last.add(found.token_ids[-1])
        else:
            assert found.finish_reason == "length"
            assert len(found.token_ids) == 40
    assert last == set(STOPS)


def test_responses_come_in_the_order_in_which_they_end(student: Student) -> None:
    found = run(collect(student.engine, requests(NUM_SEQS), Sampling(max_tokens=60)))
    lengths = [len(generation.token_ids) for generation in found]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_a_later_call_with_short_responses_overtakes_long_ones(student: Student) -> None:
    order: list[str] = []

    async def work() -> None:
        async def timed(name: str, max_tokens: int) -> None:
            await collect(student.engine, requests(2, name=name), Sampling(max_tokens, top_k=1))
            order.append(name)

        await asyncio.gather(timed("long", 200), timed("short", 2))

    run(work())
    assert order == ["short", "long"]


def test_more_requests_than_sequences_are_all_served(student: Student) -> None:
    wanted = requests(3 * NUM_SEQS)
    found = run(collect(student.engine, wanted, Sampling(max_tokens=15)))
    assert sorted(generation.request_id for generation in found) == sorted(wanted)


def test_the_same_requests_give_the_same_bits_again(student: Student) -> None:
    sampling = Sampling(max_tokens=30, temperature=0.9, top_p=0.95)
    first, second = (run(collect(student.engine, requests(24), sampling)) for _ in range(2))
    check_same_bits(first, second)


def check_same_bits(first: list[Generation], second: list[Generation]) -> None:
    assert [generation.request_id for generation in first] == [generation.request_id for generation in second]
    for one, other in zip(first, second, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs.tobytes() == other.log_probs.tobytes()


def test_a_seed_decides_a_response_whatever_else_is_running(student: Student) -> None:
    wanted = requests(12)
    alone = run(collect(student.engine, {"r5": wanted["r5"]}, Sampling(max_tokens=20)))[0]
    together = run(collect(student.engine, wanted, Sampling(max_tokens=20)))
    assert next(g for g in together if g.request_id == "r5").token_ids == alone.token_ids


def test_closing_the_iterator_aborts_what_is_unfinished(student: Student) -> None:
    async def work() -> None:
        wanted = list(requests(40).values())
        generations = student.engine.generate(wanted, Sampling(max_tokens=150))
        await anext(generations)
        assert not student.is_idle
        await generations.aclose()
        await until(lambda: student.is_idle)

    run(work())
    assert len(run(collect(student.engine, requests(3), Sampling(max_tokens=3)))) == 3


def test_cancelling_at_any_moment_leaves_an_idle_engine(student: Student) -> None:
    async def work() -> None:
        for delay in (0.0, 0.0, 0.001, 0.002, 0.005, 0.01, 0.05):
            task = asyncio.create_task(collect(student.engine, requests(8), Sampling(max_tokens=150)))
            score = asyncio.create_task(student.engine.score([[5, 6, 7]] * 8))
            await asyncio.sleep(delay)
            task.cancel()
            score.cancel()
        await asyncio.gather(task, score, return_exceptions=True)
        await until(lambda: student.is_idle)

    run(work())
    assert len(run(collect(student.engine, requests(3), Sampling(max_tokens=3)))) == 3


def test_a_loop_that_ends_with_requests_in_flight_does_not_hurt_the_engine(student: Student) -> None:
    async def leave() -> None:
        generations = student.engine.generate(list(requests(8).values()), Sampling(max_tokens=150))
        await anext(generations)

    run(leave())
    assert len(run(collect(student.engine, requests(3), Sampling(max_tokens=3)))) == 3


def test_a_prompt_beyond_the_context_is_an_error_of_its_call_only(student: Student) -> None:
    wanted = requests(2) | {"long": GenerationRequest("long", [5] * 300, seed=0)}

    async def work() -> None:
        fine = asyncio.create_task(collect(student.engine, requests(2, name="fine"), Sampling(max_tokens=20)))
        with pytest.raises(ValueError, match=r"request long: .* 300 input tokens"):
            await collect(student.engine, wanted, Sampling(max_tokens=20))
        assert len(await fine) == 2
        await until(lambda: student.is_idle)

    run(work())


def test_scores_come_in_the_order_of_their_sequences(student: Student) -> None:
    sequences = [[3 + (5 * i + j) % 60 for j in range(2 + 3 * i)] for i in range(40)]

    async def work() -> list[list[TokenScores]]:
        return await asyncio.gather(*(student.engine.score(sequences[i::3]) for i in range(3)))

    for part, scores in enumerate(run(work())):
        for sequence, found in zip(sequences[part::3], scores, strict=True):
            exact = exact_log_probs(student.model, sequence[:1], sequence[1:])
            assert found.log_probs is not None
            assert found.log_probs.dtype == np.float32
            assert np.abs(found.log_probs - exact).max() < 1e-4
