"""A rank of a driver that lost its run folder does not complete a checkpoint in it."""

from pathlib import Path

import pytest

from cluster.ownership import OWNER, NotOwnerError, Ownership
from learner import checkpoint
from tests.integration.test_learner_ranks import make_rank, run_ranks
from tests.unit.test_learner_scene import run_config, save_student


def save_twice(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    learner = make_rank(run_config(model_path), rank, world_size, port)
    checkpoints, owner = Path(folder) / "checkpoints", Ownership(Path(folder))
    owner.take()
    state = {OWNER: owner.token}
    learner.save_checkpoint(str(checkpoint.step_path(checkpoints, 1)), state)
    Ownership(Path(folder)).take()
    with pytest.raises(NotOwnerError, match="taken over by process"):
        learner.save_checkpoint(str(checkpoint.step_path(checkpoints, 2)), state)
    assert checkpoint.committed_steps(checkpoints) == [1]


def test_a_checkpoint_is_committed_only_while_its_driver_owns_the_run_folder(tmp_path: Path) -> None:
    run_ranks(save_twice, 1, save_student(tmp_path / "student"), str(tmp_path))
