"""The real learner in real processes: ranks agree, weights are published exactly, runs resume bit for bit.

Each test starts its ranks as fresh processes on gloo, and compares what they leave in files.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.rank import LearnerRank
from records import checkpoints
from settings.run import RunConfig
from tests.unit.test_learner_scene import (
    GOLDEN_TOKEN_IDS,
    STOPS,
    VOCAB_SIZE,
    replace_column,
    run_config,
    save_student,
    scored_table,
)
from transport.weights import WeightManifest, check_buckets

LENGTHS = [(3, 5), (8, 20), (2, 9), (30, 40), (5, 1), (1, 1), (1, 7), (4, 12)]

logger = logging.getLogger(__name__)


@contextmanager
def started_ranks(worker: Callable[..., None], world_size: int, *arguments: Any) -> Iterator[list[Any]]:
    """Start `worker(rank, world_size, port, *arguments)` in fresh processes, which end with the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # fresh processes that have already imported torch
    processes = [
        context.Process(target=worker, args=(rank, world_size, port, *arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def run_ranks(worker: Callable[..., None], world_size: int, *arguments: Any, timeout_s: float = 500.0) -> None:
    """Run `worker(rank, world_size, port, *arguments)` in fresh processes; fails if one does, or hangs."""
    with started_ranks(worker, world_size, *arguments) as processes:
        deadline = time.monotonic() + timeout_s
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * world_size


def make_rank(config: RunConfig, rank: int, world_size: int, port: int, **settings: Any) -> LearnerRank:
    """A rank that is set up; `settings` are further arguments, or others than the scene's."""
    scene = {"stops": STOPS, "golden_token_ids": GOLDEN_TOKEN_IDS, "vocab_size": VOCAB_SIZE}
    learner = LearnerRank(config, rank=rank, world_size=world_size, **(scene | settings))
    learner.setup("127.0.0.1", port)
    return learner


def save_checkpoint(learner: LearnerRank, path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of all ranks and commit it, as the driver of a run does."""
    if learner.rank == 0:
        checkpoints.start(path)
    learner.ranks.barrier()
    learner.begin_checkpoint(str(checkpoints.temporary_path(path)))
    report = learner.checkpoints.finish()
    reports: list[Any] = [None] * learner.world_size
    torch.distributed.all_gather_object(reports, report)
    if learner.rank == 0:
        files = {name: record for report in reports for name, record in report.files.items()}
        settings = learner.config.learner
        manifest = checkpoints.CheckpointManifest(
            learner.world_size, settings.zero_stage, settings.dtype, files, state
        )
        checkpoints.commit(path, manifest)
    learner.ranks.barrier()


def share(table: pa.Table, rank: int, world_size: int) -> pa.Table:
    """Every world_size-th row."""
    return table.take(list(range(rank, table.num_rows, world_size)))


def read_weights(parts: Sequence[np.ndarray | WeightManifest]) -> tuple[dict[str, Tensor], WeightManifest]:
    """Rebuild tensors from buckets and manifest, as an engine does."""
    *buckets, manifest = parts
    assert isinstance(manifest, WeightManifest)
    check_buckets(manifest, buckets)  # pyright: ignore[reportArgumentType]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[manifest.dtype]
    weights = {}
    for spec in manifest.tensors:
        flat = torch.from_numpy(buckets[spec.bucket])[spec.offset :].view(torch.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
        values = flat[: spec.num_elements * dtype.itemsize].clone().view(dtype)
        weights[spec.name] = values.view(spec.shape)
    return weights, manifest


def relative(left: dict[str, Tensor], right: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> float:
    """Relative L2 distance of two weight sets; of their changes since `start`, if given."""
    assert left.keys() == right.keys()
    base = start if start is not None else {name: torch.zeros_like(value) for name, value in right.items()}
    distance = sum(float((left[name] - right[name]).double().square().sum()) for name in right)
    length = sum(float((right[name] - base[name]).double().square().sum()) for name in right)
    return (distance / length) ** 0.5


def parameters_on_disk(path: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# With eps far above the gradient, AdamW's first update is `-rate / eps * gradient` to a high degree, so that
# the change of the weights reads the gradient out, and a huge rate keeps its digits.
READ_OUT_GRADIENT = {"learning_rate": 1e4, "eps": 1e3, "max_grad_norm": 0.0}


def one_step_at_every_stage(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    table = scored_table(LENGTHS, ends_with=62)
    for stage in (0, 1, 2, 3):
        for normaliser in ("none", "zscore") if stage >= 2 else ("none",):
            config = run_config(
                model_path,
                learner={"zero_stage": stage, **READ_OUT_GRADIENT},
                objective={"normaliser": normaliser, "stop_mode": "mask"},
                logging={"diagnostics_every": 1},
            )
            learner = make_rank(config, rank, world_size, port)
            result = learner.train_step(0, share(table, rank, world_size))
            parts = list(learner.publish(incarnation=0, version=1))
            if rank == 0:
                weights, _ = read_weights(parts)
                file = f"{folder}/world{world_size}_stage{stage}_{normaliser}.pt"
                torch.save({"weights": weights, "metrics": result.metrics}, file)
            else:
                assert parts == []


def test_one_and_two_ranks_take_the_same_step_at_every_zero_stage(tmp_path: Path) -> None:
    model_path = save_student(tmp_path / "student")
    start = parameters_on_disk(model_path)
    for world_size in (1, 2):
        run_ranks(one_step_at_every_stage, world_size, model_path, str(tmp_path))
    reference = torch.load(tmp_path / "world1_stage0_none.pt")
    for file in sorted(tmp_path.glob("world*.pt")):
        found = torch.load(file)
        expected = torch.load(tmp_path / "world1_stage2_zscore.pt") if "zscore" in file.name else reference
        distance = relative(found["weights"], expected["weights"], start)
        logger.info("%s: relative L2 of the update %.2g", file.name, distance)
        assert distance <= 1e-6, file.name
        if "stage3" in file.name:  # no rank has all gradients there
            assert "grad_norm/log_ratio" not in found["metrics"]
            found["metrics"]["grad_norm/log_ratio"] = expected["metrics"]["grad_norm/log_ratio"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5, abs=1e-7), file.name


PUBLISHED = [(1, "tied"), (2, "untied"), (3, "tied"), (3, "untied")]
"""ZeRO stages, and whether the output embedding is the input's."""


def publish_in_bfloat16(rank: int, world_size: int, port: int, folder: str) -> None:
    import deepspeed

    for stage, name in PUBLISHED:
        settings = {"zero_stage": stage, "dtype": "bfloat16", "learning_rate": 1e-2}
        learner = make_rank(run_config(f"{folder}/{name}", learner=settings), rank, world_size, port)
        learner.train_step(0, share(scored_table(LENGTHS), rank, world_size))
        master = {
            key: deepspeed.utils.safe_get_full_fp32_param(parameter).clone()  # pyright: ignore[reportOptionalMemberAccess]
            for key, parameter in learner.backend.student.causal_lm.named_parameters()
        }
        parts = list(learner.publish(incarnation=3, version=1))
        learner.export(f"{folder}/export_{stage}_{name}")
        if rank == 0:
            weights, manifest = read_weights(parts)
            found = {"weights": weights, "master": master, "manifest": manifest}
            torch.save(found, f"{folder}/{stage}_{name}.pt")


def test_published_weights_are_the_float32_master_weights_rounded_to_bfloat16(tmp_path: Path) -> None:
    for name in ("tied", "untied"):
        save_student(tmp_path / name, tied=name == "tied")
    run_ranks(publish_in_bfloat16, 2, str(tmp_path))
    for stage, name in PUBLISHED:
        found = torch.load(tmp_path / f"{stage}_{name}.pt", weights_only=False)
        weights, master, manifest = found["weights"], found["master"], found["manifest"]
        assert ("lm_head.weight" in weights) == (name == "untied")
        assert (manifest.incarnation, manifest.version, manifest.dtype) == (3, 1, "bfloat16")
        assert weights.keys() == master.keys()
        for key, value in weights.items():
            assert master[key].dtype == torch.float32
            assert torch.equal(value, master[key].to(torch.bfloat16)), key
        assert_export_holds(f"{tmp_path}/export_{stage}_{name}", weights, manifest)


def assert_export_holds(path: str, weights: dict[str, Tensor], manifest: WeightManifest) -> None:
    """An exported folder has the published weights, a tokenizer, and gives the golden log-probs."""
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(path)) == VOCAB_SIZE
    exported = dict(model.named_parameters())
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(exported[name], value), name
    ids = torch.tensor(manifest.golden_token_ids)
    log_probs = model(input_ids=ids[None, :-1]).logits[0].float().log_softmax(-1)
    golden = log_probs.gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(golden, torch.tensor(manifest.golden_log_probs), rtol=0, atol=2e-2)


def ten_steps(rank: int, world_size: int, port: int, config: RunConfig, folder: str) -> None:
    learner = make_rank(config, rank, world_size, port)
    losses = [learner.train_step(step, scored_table(LENGTHS, seed=step)).metrics["loss"] for step in range(10)]
    weights, _ = read_weights(list(learner.publish(0, 10)))
    torch.save({"losses": losses, "weights": weights}, f"{folder}/learner.pt")


def test_ten_steps_equal_a_plain_torch_loop_on_the_same_tables(tmp_path: Path) -> None:
    model_path = save_student(tmp_path / "student")
    learner = {"learning_rate": 1e-3, "warmup_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.05}
    config = run_config(model_path, learner=learner)
    run_ranks(ten_steps, 1, config, str(tmp_path))
    found = torch.load(tmp_path / "learner.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses, weights = plain_loop(model_path)
    torch.set_num_threads(threads)  # engines in this process, of other tests, count them
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    distance = relative(found["weights"], weights, parameters_on_disk(model_path))
    logger.info("ten steps: relative L2 of the change %.2g", distance)
    assert relative(found["weights"], weights) <= 1e-5
    assert distance <= 1e-4


def plain_loop(model_path: str) -> tuple[list[float], dict[str, Tensor]]:
    """PowerOPD with alpha 1 and a weight truncated at 2, one sequence at a time, without any of our code."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for step in range(10):
        rows = scored_table(LENGTHS, seed=step).to_pylist()
        num_tokens = sum(len(row["response_token_ids"]) for row in rows)
        total = torch.tensor(0.0)
        for row in rows:
            prompt, response = row["prompt_token_ids"], torch.tensor(row["response_token_ids"])
            ids = torch.cat([torch.tensor(prompt), response])
            logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
            logp = logits.log_softmax(-1).gather(1, response[:, None])[:, 0]
            reward = torch.tensor(row["teacher_log_probs"]).exp() - logp.detach().exp()
            weight = (logp.detach() - torch.tensor(row["behaviour_log_probs"])).exp().clamp(max=2.0)
            total = total - (weight * reward * logp).sum() / num_tokens
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 3)
        optimizer.step()
        losses.append(total.item())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def train_and_save(
    rank: int, world_size: int, port: int, config: RunConfig, folder: str, start: int, stop: int
) -> None:
    """Train steps [start, stop) from the newest checkpoint, or from the beginning with two checkpoints."""
    learner = make_rank(config, rank, world_size, port)
    path = checkpoints.step_path(folder, checkpoints.committed_steps(folder)[-1]) if start else None
    if path is not None:
        assert learner.load_checkpoint(str(path)) == 0.0
        assert checkpoints.read_manifest(path).client_state == {"next_step": start}
    for step in range(start, stop):
        if step in (1, 2) and path is None:
            save_checkpoint(learner, checkpoints.step_path(folder, step), {"next_step": step})
        learner.train_step(step, share(scored_table(LENGTHS, seed=step), rank, world_size))
    parts = list(learner.publish(0, stop))
    if rank == 0:
        weights, manifest = read_weights(parts)
        torch.save({"weights": weights, "golden": manifest.golden_log_probs}, f"{folder}/from{start}.pt")
    learner.shutdown()


@pytest.mark.parametrize(("stage", "world_size", "dtype"), [(2, 1, "float32"), (3, 2, "bfloat16")])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, stage: int, world_size: int, dtype: str
) -> None:
    model_path = save_student(tmp_path / "student")
    learner = {"zero_stage": stage, "dtype": dtype, "lr_schedule": "cosine"}
    config = run_config(model_path, learner=learner)
    run_ranks(train_and_save, world_size, config, str(tmp_path), 0, 4)
    run_ranks(train_and_save, world_size, config, str(tmp_path), 2, 4)
    whole, resumed = torch.load(tmp_path / "from0.pt"), torch.load(tmp_path / "from2.pt")
    assert checkpoints.committed_steps(tmp_path) == [1, 2]
    assert whole["golden"] == resumed["golden"]
    for name, value in whole["weights"].items():
        assert torch.equal(value, resumed["weights"][name]), name


def awkward_windows(rank: int, world_size: int, port: int, model_path: str) -> None:
    """Windows in which ranks have unequal or no work; every assertion is checked on both ranks."""
    config = run_config(model_path, learner={"micro_batch_tokens": 32}, objective={"stop_mode": "mask"})
    learner = make_rank(config, rank, world_size, port)
    only_first = [scored_table(LENGTHS)] if rank == 0 else []
    result = learner.train_step(0, *only_first)
    assert result.tokens_trained == sum(response for _, response in LENGTHS)
    assert result.metrics["grad_norm"] > 0

    one_token = scored_table([(3, 1), (2, 1)], ends_with=62, stop_mode="mask")
    for tables in ([one_token] if rank == 0 else [], []):
        result = learner.train_step(1, *tables)
        assert (result.tokens_trained, result.metrics["grad_norm"], result.was_skipped) == (0, 0.0, False)

    table = scored_table([(3, 4)], first=10 * rank, version=2)
    nan = replace_column(table, "teacher_log_probs", [[-1.0, float("nan"), -1.0, -1.0]])
    result = learner.train_step(5, nan if rank == 0 else table)
    assert result.metrics["masked/nonfinite"] == 1
    assert (result.tokens_trained, result.staleness_max, result.staleness_mean) == (7, 3, 3.0)
    assert not result.was_skipped


def test_ranks_with_no_or_masked_or_broken_tokens_neither_hang_nor_spoil_the_step(tmp_path: Path) -> None:
    run_ranks(awkward_windows, 2, save_student(tmp_path / "student"))


def spoil_gradient(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
    """A forward hook of the head that makes every gradient NaN."""
    if outputs[0].requires_grad:
        outputs[0].register_hook(lambda gradient_T: gradient_T * float("nan"))


def skip_non_finite(rank: int, world_size: int, port: int, model_path: str) -> None:
    for stage, dtype in [
        (0, "float32"),
        (1, "float32"),
        (1, "bfloat16"),
        (2, "bfloat16"),
        (3, "bfloat16"),
    ]:
        config = run_config(model_path, learner={"zero_stage": stage, "dtype": dtype})
        learner = make_rank(config, rank, world_size, port)
        before, _ = read_weights(list(learner.publish(0, 0)))
        handle = learner.backend.student.head.register_forward_hook(spoil_gradient)
        result = learner.train_step(0, scored_table(LENGTHS))
        assert result.was_skipped, (stage, dtype)
        assert not np.isfinite(result.metrics["grad_norm"])
        after, _ = read_weights(list(learner.publish(0, 1)))
        assert all(torch.equal(after[name], before[name]) for name in before), (stage, dtype)
        handle.remove()
        result = learner.train_step(1, scored_table(LENGTHS))
        assert not result.was_skipped, (stage, dtype)
        assert np.isfinite(result.metrics["grad_norm"])


def test_a_non_finite_gradient_skips_the_step_and_the_next_one_trains(tmp_path: Path) -> None:
    run_ranks(skip_non_finite, 1, save_student(tmp_path / "student"))


def save_memory(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    for name, extra in {
        "plain": {},
        "frugal": {"activation_checkpointing": True, "offload_optimizer": True, "zero_stage": 3},
    }.items():
        learner = make_rank(run_config(model_path, learner=extra), rank, world_size, port)
        for step in range(2):
            learner.train_step(step, scored_table(LENGTHS, seed=step))
        torch.save(read_weights(list(learner.publish(0, 2)))[0], f"{folder}/{name}.pt")


def test_checkpointed_activations_and_an_offloaded_optimizer_change_nothing(tmp_path: Path) -> None:
    run_ranks(save_memory, 1, save_student(tmp_path / "student"), str(tmp_path))
    assert relative(torch.load(tmp_path / "frugal.pt"), torch.load(tmp_path / "plain.pt")) <= 1e-6
