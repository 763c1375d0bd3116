"""What DeepSpeed saves goes to our writer: an engine for the time of one `engine.save_checkpoint`.

It answers the calls of `deepspeed.runtime.checkpoint_engine.CheckpointEngine` that saving makes. None of them
touches the disk: an error there in one rank would leave the others waiting at DeepSpeed's next barrier.
"""

from pathlib import Path
from typing import Any

from learner.checkpoint_writer import CheckpointWriter


class WriterEngine:
    """Hands every state to a writer."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer

    def create(self, info: Any) -> None:
        """Nothing to do."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """The writer makes its folders."""

    def save(self, state_dict: Any, path: str) -> None:
        """Take the state as it is now."""
        self._writer.add(state_dict, Path(path))

    def commit(self, info: Any) -> bool:
        """The driver commits."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """The first rank writes what all ranks share."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """DeepSpeed need not come back for the commit."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """The writer copies tensors itself."""
        return False
