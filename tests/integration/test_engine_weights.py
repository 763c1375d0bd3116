"""Weights into a running engine: exact afterwards for every parameter, never half, and no request is lost."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen3ForCausalLM

from actors.engine import Generation, GenerationRequest, Sampling
from actors.vllm import packed_layers
from tests.integration.test_engine_scene import (
    Student,
    collect,
    exact_log_probs,
    in_place,
    opened,
    perturb,
    prompt_of,
    publish,
    read_model,
    requests,
    run,
    save_model,
    settings,
    until,
)
from tests.unit.buckets_in_place import BucketsInPlace

pytestmark = pytest.mark.timeout(600)

PARAMETER_KINDS = [
    "embed_tokens",
    "lm_head",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_norm",
    "k_norm",
    "gate_proj",
    "up_proj",
    "down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "model.norm",
]

NUM_SEQS = 16


PACKED, GENERAL = packed_layers.ARCHITECTURES, ()

CASES = {
    "tied-file": (True, True, PACKED),
    "untied-in-place": (False, False, PACKED),
    "tied-in-place-general": (True, False, GENERAL),
    "untied-file-general": (False, True, GENERAL),
}
"""Whether the output embedding is the input's, whether weights come by a file, which models need no reload."""


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def opened_student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Student]:
    is_tied, shares_weights, architectures = request.param
    path = save_model(tmp_path_factory.mktemp("student"), tied=is_tied)
    with (
        pytest.MonkeyPatch.context() as patch,
        opened(replace(settings(path, max_num_seqs=NUM_SEQS), shares_weights=shares_weights)) as engine,
    ):
        patch.setattr(packed_layers, "ARCHITECTURES", architectures)
        yield Student(engine, path, read_model(path))


@pytest.fixture
def student(opened_student: Student) -> Student:
    """The engine with the weights of its folder, loaded anew."""
    opened_student.model = read_model(opened_student.path)
    run(opened_student.load())
    return opened_student


def largest_error(
    model: Qwen3ForCausalLM, prompt: list[int], token_ids: list[int], log_probs: np.ndarray
) -> float:
    return float(np.abs(exact_log_probs(model, prompt, token_ids) - log_probs).max())


def check_runs(
    found: Sequence[Generation], wanted: dict[str, GenerationRequest], models: dict[int, Qwen3ForCausalLM]
) -> None:
    """Every token's log-prob is that of the model of its version."""
    for generation in found:
        prompt, start = wanted[generation.request_id].prompt_token_ids, 0
        for version, num_tokens in generation.version_runs:
            end = start + num_tokens
            prefix, run_ids = [*prompt, *generation.token_ids[:start]], generation.token_ids[start:end]
            assert largest_error(models[version], prefix, run_ids, generation.log_probs[start:end]) < 1e-4
            start = end
        assert start == len(generation.token_ids)


def test_every_parameter_kind_reaches_the_engine_exactly(student: Student) -> None:
    wanted = requests(6)
    names = [name for name, _ in student.model.named_parameters()]
    kinds = [kind for kind in PARAMETER_KINDS if any(kind in name for name in names)]
    assert all(any(kind in name for kind in kinds) for name in names)
    probe = [*prompt_of(0), *prompt_of(5)]
    for kind in kinds:
        before = exact_log_probs(student.model, probe[:1], probe[1:])
        perturb(student.model, kind)
        assert np.abs(exact_log_probs(student.model, probe[:1], probe[1:]) - before).max() > 3e-3, kind
        report = run(student.load())
        assert (report.incarnation, report.version) == (0, student.version)
        assert report.golden_difference < 1e-4, kind
        for found in run(collect(student.engine, wanted, Sampling(max_tokens=12))):
            prompt = wanted[found.request_id].prompt_token_ids
            assert largest_error(student.model, prompt, found.token_ids, found.log_probs) < 1e-4, kind
            assert found.version_runs == [(student.version, 12)]
        (scores,) = run(student.engine.score([probe]))
        assert largest_error(student.model, probe[:1], probe[1:], scores.log_probs) < 1e-4, kind


def test_loading_leaves_no_staged_weights_mapped(student: Student) -> None:
    run(student.load())
    assert "poweropd-weights" not in Path("/proc/self/maps").read_text()


def test_requests_in_flight_go_on_with_new_weights_from_an_exact_cut(student: Student) -> None:
    wanted = requests(2 * NUM_SEQS)
    models, old = {student.version: student.model}, student.version

    async def work() -> list[Generation]:
        first = asyncio.create_task(collect(student.engine, requests(1, name="first"), Sampling(max_tokens=10)))
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=120)))
        await first
        student.model = read_model(student.path)
        perturb(student.model)
        await student.load()
        models[student.version] = student.model
        return await task

    found = run(work())
    assert {generation.request_id for generation in found} == wanted.keys()
    assert all(generation.finish_reason == "length" for generation in found)
    check_runs(found, wanted, models)
    cut = [generation for generation in found if len(generation.version_runs) == 2]
    assert len(cut) >= NUM_SEQS - 1
    for generation in cut:
        (version, num_old), (_, num_new) = generation.version_runs
        assert version == old
        assert num_old > 1
        assert num_new > 1


def test_several_loads_during_one_response_give_several_runs(student: Student) -> None:
    wanted = requests(4)
    models = {student.version: student.model}

    async def work() -> list[Generation]:
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=230)))
        for number in range(3):
            await collect(student.engine, requests(1, name=f"wait{number}-"), Sampling(max_tokens=10))
            student.model = read_model(student.path)
            perturb(student.model, seed=number)
            await student.load()
            models[student.version] = student.model
        return await task

    found = run(work())
    check_runs(found, wanted, models)
    for generation in found:
        assert [version for version, _ in generation.version_runs] == list(models)


def test_a_load_does_not_wait_for_the_backlog(student: Student) -> None:
    wanted, found = requests(3 * NUM_SEQS), list[Generation]()

    async def work() -> int:
        first = asyncio.create_task(collect(student.engine, requests(1, name="first"), Sampling(max_tokens=10)))
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=230), found))
        await first
        await student.load()
        num_found = len(found)
        await task
        return num_found

    assert run(work()) == 0
    assert len(found) == len(wanted)


@pytest.mark.parametrize("golden_error", [0.0, 0.5])
def test_responses_that_end_during_the_check_are_delivered_only_if_it_passes(
    student: Student, golden_error: float
) -> None:
    wanted, found = requests(600), list[Generation]()
    models, old = {student.version: student.model}, student.version
    student.model = read_model(student.path)
    perturb(student.model)
    update = student.publish(golden_error=golden_error)
    models[student.version] = student.model

    async def work() -> None:
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=2), found))
        await until(lambda: len(found) > 0)
        if golden_error == 0.0:
            await student.engine.load_weights(*in_place(update))
            await task
        else:
            with pytest.raises(ValueError, match="golden"):
                await student.engine.load_weights(*in_place(update))
            with pytest.raises(RuntimeError, match="failed with requests in flight"):
                await task

    run(work())
    check_runs(found, wanted, models)
    if golden_error == 0.0:
        assert {generation.request_id for generation in found} == wanted.keys()
        assert found[-1].version_runs == [(student.version, 2)]
    else:
        assert all(generation.version_runs == [(old, 2)] for generation in found)


def test_a_damaged_bucket_changes_nothing(student: Student) -> None:
    wanted, held = requests(4), student.version
    old_model = student.model
    student.model = read_model(student.path)
    perturb(student.model)
    manifest, buckets = student.publish()
    buckets[2] = buckets[2].copy()
    buckets[2][100] ^= 1

    async def work() -> list[Generation]:
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=60)))
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="checksum of bucket 2 differs"):
            await student.engine.load_weights(manifest, BucketsInPlace(buckets))
        with pytest.raises(ValueError, match=f"expected {len(buckets)} buckets, got 1"):
            await student.engine.load_weights(manifest, BucketsInPlace(buckets[:1]))
        return await task

    found = run(work())
    assert [generation.version_runs for generation in found] == [[(held, 60)]] * 4
    check_runs(found, wanted, {held: old_model})


def test_weights_that_fail_the_golden_check_are_never_served(student: Student) -> None:
    wanted = requests(4)

    async def work() -> None:
        task = asyncio.create_task(collect(student.engine, wanted, Sampling(max_tokens=230)))
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match=r"golden log-probs differ from the learner's by 0\.5"):
            await student.engine.load_weights(*in_place(student.publish(golden_error=0.5)))
        with pytest.raises(RuntimeError, match=r"failed with requests in flight: .*golden"):
            await task
        assert student.is_idle
        with pytest.raises(RuntimeError, match="no verified weights"):
            await collect(student.engine, wanted, Sampling(max_tokens=2))
        with pytest.raises(RuntimeError, match="no verified weights"):
            await student.engine.score([prompt_of(0)])
        with pytest.raises(RuntimeError, match="no longer holds its folder's weights"):
            student.engine.serve_own_weights()
        await student.load()

    run(work())
    found = run(collect(student.engine, wanted, Sampling(max_tokens=20)))
    check_runs(found, wanted, {student.version: student.model})


def test_a_load_queued_behind_a_failing_one_succeeds(student: Student) -> None:
    wrong, right = student.publish(golden_error=0.5), student.publish()

    async def work() -> None:
        failing = asyncio.create_task(student.engine.load_weights(*in_place(wrong)))
        following = asyncio.create_task(student.engine.load_weights(*in_place(right)))
        with pytest.raises(ValueError, match="golden"):
            await failing
        assert (await following).version == student.version

    run(work())
    assert len(run(collect(student.engine, requests(2), Sampling(max_tokens=3)))) == 2


@pytest.mark.parametrize("mistake", ["unknown name", "missing tensor", "further tensor"])
def test_an_incomplete_weight_set_is_refused_and_the_next_load_recovers(student: Student, mistake: str) -> None:
    perturb(student.model)
    manifest, buckets = student.publish()
    left_out = None if mistake == "further tensor" else "model.layers.0.mlp.down_proj.weight"
    specs = [spec for spec in manifest.tensors if spec.name != left_out]
    if mistake != "missing tensor":
        specs.insert(3, replace(manifest.tensors[0], name="model.nothing.weight"))
    error = f"too little, for {left_out}" if mistake == "missing tensor" else "no module or parameter named"
    if left_out is not None and packed_layers.ARCHITECTURES == PACKED:
        error = f"has no {left_out}"
    with pytest.raises(Exception, match=error):
        run(student.engine.load_weights(replace(manifest, tensors=tuple(specs)), BucketsInPlace(buckets)))
    run(student.load())
    wanted = requests(3)
    found = run(collect(student.engine, wanted, Sampling(max_tokens=10)))
    check_runs(found, wanted, {student.version: student.model})


def test_older_weights_are_refused(student: Student) -> None:
    held = student.version
    with pytest.raises(ValueError, match=f"weights v{held - 1} of incarnation 0 are older than the engine's"):
        run(student.engine.load_weights(*in_place(publish(student.model, held - 1))))
    assert run(student.engine.load_weights(*in_place(publish(student.model, held)))).version == held
    (found,) = run(collect(student.engine, requests(1), Sampling(max_tokens=3)))
    assert found.version_runs == [(held, 3)]


def test_a_cancelled_load_leaves_a_working_engine(student: Student) -> None:
    async def work() -> list[Generation]:
        for delay in (0.0, 0.002, 0.01, 0.0, 0.002, 0.01):
            task = asyncio.create_task(student.load())
            await asyncio.sleep(delay)
            task.cancel()
        await student.load()
        return await collect(student.engine, requests(2), Sampling(max_tokens=3))

    assert len(run(work())) == 2
