"""Checkpoints of the real learner: what is written while training continues, for other ranks, and under kill -9.

Learners are processes of their own, as in `test_learner_ranks.py`.
"""

import logging
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint_writer import CheckpointWriter
from learner.rank import LearnerRank
from records import checkpoints
from settings.run import RunConfig
from tests.integration.test_learner_ranks import (
    LENGTHS,
    make_rank,
    read_weights,
    relative,
    run_ranks,
    save_checkpoint,
    share,
    started_ranks,
)
from tests.unit.test_learner_scene import run_config, save_student, scored_table

logger = logging.getLogger(__name__)


def train(learner: LearnerRank, *steps: int) -> None:
    """Take these steps, each on its own table."""
    for step in steps:
        learner.train_step(step, share(scored_table(LENGTHS, seed=step), learner.rank, learner.world_size))


def keep_weights(learner: LearnerRank, file: str) -> None:
    """Save the published weights (first rank)."""
    parts = list(learner.publish(0, 1))
    if learner.rank == 0:
        torch.save(read_weights(parts)[0], file)


def keep_state(learner: LearnerRank, file: str) -> None:
    """Save master weights and the optimizer's moments (first rank)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state: dict[str, Any] = {}
    for name, parameter in learner.backend.student.named_parameters():
        state[f"{name}/fp32"] = safe_get_full_fp32_param(parameter)
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"{name}/{moment}"] = safe_get_full_optimizer_state(parameter, moment)
    if learner.rank == 0:
        torch.save({name: value.clone() for name, value in state.items()}, file)


def save_both_ways(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    for is_asynchronous in (True, False):
        for stage in (0, 1, 2, 3):
            config = run_config(model_path, learner={"zero_stage": stage})
            learner = make_rank(config, rank, world_size, port)
            train(learner, 0, 1)
            target = Path(folder) / f"stage_{stage}_{is_asynchronous}"
            if rank == 0:
                target.mkdir()
            learner.ranks.barrier()
            writer = CheckpointWriter(target, in_background=is_asynchronous)
            learner.backend.save(writer)
            train(learner, 2, 3)
            writer.close()  # only now, in the background, is anything written
            writer.join()
            report = writer.report
            assert report is not None
            assert report.failure is None
            torch.save(report.files, f"{target}_rank_{rank}.pt")


def test_what_is_written_while_training_goes_on_is_what_is_written_while_it_waits(tmp_path: Path) -> None:
    run_ranks(save_both_ways, 2, save_student(tmp_path / "student"), str(tmp_path))
    for stage in (0, 1, 2, 3):
        for rank in range(2):
            found, expected = (
                torch.load(tmp_path / f"stage_{stage}_{kind}_rank_{rank}.pt", weights_only=False)
                for kind in (True, False)
            )
            assert found == expected
            assert found or rank > 0
            for name, record in found.items():
                content = (tmp_path / f"stage_{stage}_True" / name).read_bytes()
                assert checkpoints.record_of([content]) == record
                assert content == (tmp_path / f"stage_{stage}_False" / name).read_bytes()


def save_at_two(rank: int, world_size: int, port: int, config: RunConfig, folder: str) -> None:
    learner = make_rank(config, rank, world_size, port)
    train(learner, 0, 1)
    save_checkpoint(learner, checkpoints.step_path(folder, 2), {})
    keep_state(learner, f"{folder}/saved.pt")
    train(learner, 2, 3)
    keep_weights(learner, f"{folder}/trained_on.pt")


def load_at_two(rank: int, world_size: int, port: int, config: RunConfig, folder: str, name: str) -> None:
    learner = make_rank(config, rank, world_size, port)
    seconds = learner.load_checkpoint(str(checkpoints.step_path(folder, 2)))
    assert (seconds > 0) == (rank == 0 and name == "first")
    keep_state(learner, f"{folder}/loaded_{name}.pt")
    train(learner, 2, 3)
    keep_weights(learner, f"{folder}/{name}.pt")


@pytest.mark.parametrize(
    ("stages", "sizes", "dtype"),
    [
        ((2, 2), (1, 2), "float32"),
        ((3, 3), (2, 1), "float32"),
        pytest.param((2, 1), (2, 1), "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_is_read_by_another_number_of_ranks(
    tmp_path: Path, stages: tuple[int, int], sizes: tuple[int, int], dtype: str
) -> None:
    """Master weights and the optimizer's moments are the same bits; further steps differ by rounding alone."""
    model_path = save_student(tmp_path / "student")
    written, read = (run_config(model_path, learner={"zero_stage": stage, "dtype": dtype}) for stage in stages)
    run_ranks(save_at_two, sizes[0], written, str(tmp_path))
    for name in ("first", "second") if sizes == (1, 2) else ("first",):  # the second finds it converted
        run_ranks(load_at_two, sizes[1], read, str(tmp_path), name)
        found, expected = torch.load(tmp_path / f"loaded_{name}.pt"), torch.load(tmp_path / "saved.pt")
        assert found.keys() == expected.keys()
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
        distance = relative(torch.load(tmp_path / f"{name}.pt"), torch.load(tmp_path / "trained_on.pt"))
        logger.warning("two steps after loading: relative L2 of the weights %.2g", distance)
        assert distance <= (1e-6 if dtype == "float32" else 1e-3)
    assert not list(tmp_path.glob("*.tmp"))
    checkpoints.verify(tmp_path / "step_2")


NEW = {"betas": [0.5, 0.6], "eps": 0.25, "weight_decay": 0.75}


def resume_with_others(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    """Load each checkpoint with other settings of the optimizer, the last one after a conversion."""
    for saved, loaded in ((0, 0), (2, 2), (3, 3), (2, 1)):
        path = Path(folder) / f"stage_{saved}_{loaded}"
        learner = make_rank(run_config(model_path, learner={"zero_stage": saved}), rank, world_size, port)
        train(learner, 0)
        save_checkpoint(learner, path, {})
        learner = make_rank(run_config(model_path, learner={"zero_stage": loaded} | NEW), rank, world_size, port)
        learner.load_checkpoint(str(path))
        for group in learner.backend.engine.optimizer.param_groups:
            assert {name: group[name] for name in NEW} == {**NEW, "betas": group["betas"]}
            assert list(group["betas"]) == NEW["betas"]
        train(learner, 1)


def test_other_settings_of_the_optimizer_take_effect_after_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    run_ranks(resume_with_others, 1, save_student(tmp_path / "student"), str(tmp_path))


def fill_disk(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    learner = make_rank(run_config(model_path), rank, world_size, port)
    train(learner, 0)
    target = Path(folder) / "step_1.tmp"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    learner.begin_checkpoint(str(target))
    train(learner, 1)
    report = learner.checkpoints.finish()
    assert report.failure is not None
    assert "File too large" in report.failure
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    learner.begin_checkpoint(str(target))
    assert learner.checkpoints.finish().failure is None


def test_a_disk_that_does_not_take_it_fails_the_checkpoint_and_not_the_ranks(tmp_path: Path) -> None:
    run_ranks(fill_disk, 2, save_student(tmp_path / "student"), str(tmp_path))


# -- kill -9 --


def save_every_step(
    rank: int, world_size: int, port: int, config: RunConfig, folder: str, stop: int | None
) -> None:
    """Resume from the newest checkpoint and train, saving after every step; keep the weights of step `stop`."""
    learner, root = make_rank(config, rank, world_size, port), Path(folder)
    checkpoints.recover(root)
    steps = checkpoints.committed_steps(root)
    step = 0
    if steps:
        path = checkpoints.step_path(root, steps[-1])
        step = checkpoints.verify(path).client_state["step"]
        learner.load_checkpoint(str(path))
    writing: int | None = None
    while step != stop:
        train(learner, step)
        step += 1
        if writing is not None:
            commit(learner, root, writing)
        writing = step
        learner.begin_checkpoint(str(checkpoints.start(checkpoints.step_path(root, step))))
    keep_weights(learner, f"{folder}/weights.pt")


def commit(learner: LearnerRank, root: Path, step: int) -> None:
    report = learner.checkpoints.finish()
    manifest = checkpoints.CheckpointManifest(1, 2, "float32", report.files, {"step": step})
    checkpoints.commit(checkpoints.step_path(root, step), manifest)
    checkpoints.remove_old(root, keep=2)


def kill_while_saving(process: Any, root: Path, rng: random.Random) -> None:
    """Kill a learner at a random moment of one of its first saves."""
    deadline, saves = time.monotonic() + 500, rng.randint(1, 8)
    seen: set[str] = set()
    while len(seen) < saves:
        assert process.is_alive(), "the learner ended by itself"
        assert time.monotonic() < deadline, "no checkpoint within 500 s"
        seen |= {path.name for path in root.glob("step_*.tmp")}
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(process.pid, signal.SIGKILL)
    process.join(100)


def kill_and_resume(tmp_path: Path, *, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    config = run_config(save_student(tmp_path / "student"))
    root, whole = tmp_path / "killed", tmp_path / "whole"
    root.mkdir()
    whole.mkdir()
    struck = 0
    for _ in range(num_kills):
        with started_ranks(save_every_step, 1, config, str(root), None) as [process]:
            kill_while_saving(process, root, rng)
        struck += any(root.glob("step_*.tmp"))
        for step in checkpoints.committed_steps(root):
            assert checkpoints.verify(checkpoints.step_path(root, step)).client_state == {"step": step}
    stop = max(checkpoints.committed_steps(root), default=0) + 2
    run_ranks(save_every_step, 1, config, str(root), stop)
    run_ranks(save_every_step, 1, config, str(whole), stop)
    resumed, undisturbed = torch.load(root / "weights.pt"), torch.load(whole / "weights.pt")
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
    logger.warning("%d of %d kills struck during a save; %d steps", struck, num_kills, stop)
    assert struck > 0


def test_a_learner_killed_while_it_saves_goes_on_from_a_committed_checkpoint_to_the_same_bits(
    tmp_path: Path,
) -> None:
    kill_and_resume(tmp_path, num_kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_learners_killed_while_they_save_go_on_to_the_same_bits(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, num_kills=20, seed=1)
