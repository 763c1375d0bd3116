"""What one rank does for a checkpoint: writes its own files, and restores itself from all of them.

The driver makes the folder, commits it once every rank has written, and chooses the one to restore.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from learner.checkpoint_writer import CheckpointWriter
from learner.ranks import Ranks
from learner.universal import check_world, convert, needs_conversion
from records.checkpoints import WriteReport, check_sizes, read_manifest
from settings.run import RunConfig

if TYPE_CHECKING:
    from learner.deepspeed_backend import DeepSpeedBackend

logger = logging.getLogger(__name__)


class RankCheckpoints:
    """Saves and restores a rank that is set up; every rank must make the same calls."""

    def __init__(self, config: RunConfig, *, ranks: Ranks, backend: "DeepSpeedBackend") -> None:
        self._config = config
        self._ranks = ranks
        self._backend = backend
        self._writer: CheckpointWriter | None = None

    def begin(self, folder: str) -> None:
        """Take the state as it is now; it is written to `folder` while training continues.

        With `checkpoint.asynchronous` false it is written before this returns. A write that is in progress is
        waited for.
        """
        if self._writer is not None:
            self._writer.join()
        writer = CheckpointWriter(Path(folder), in_background=self._config.checkpoint.asynchronous)
        self._backend.save(writer)
        random_state = _random_state(self._ranks.device)
        writer.add(random_state, Path(folder) / f"random_rank_{self._ranks.rank}.pt")
        writer.close()
        self._writer = writer

    def written(self) -> WriteReport | None:
        """What this rank has written; None while it still writes. Returns at once."""
        assert self._writer is not None, "no checkpoint was begun"
        return self._writer.report

    def finish(self) -> WriteReport:
        """Wait until this rank has written."""
        assert self._writer is not None, "no checkpoint was begun"
        self._writer.join()
        report = self._writer.report
        assert report is not None
        return report

    def load(self, path: str) -> float:
        """Restore weights, optimizer and random state: bit-exact, unless ranks or ZeRO stage are others.

        Then the checkpoint is converted first, once; returns the seconds that took, or 0. The caller has verified
        the files; DamagedCheckpointError if this node does not see them whole.
        """
        folder, learner = Path(path), self._config.learner
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
        check_world(manifest, learner, path=folder)
        seconds = 0.0
        if needs_conversion(manifest, learner, world_size=self._ranks.world_size):
            seconds = convert(folder) if self._ranks.is_first else 0.0
            self._ranks.barrier()
            self._backend.load_universal(folder)
        else:
            self._backend.load(folder)
        random_state = folder / f"random_rank_{self._ranks.rank}.pt"
        if random_state.is_file():  # a rank more than there were keeps that of its start
            _set_random_state(torch.load(random_state, weights_only=True), self._ranks.device)
        return seconds


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
