"""One rank's part of a checkpoint on its way to disk: copied to host memory, written while training continues."""

import copy
import os
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from records.checkpoints import FileRecord, WriteReport
from records.files import is_disk_error


class CheckpointWriter:
    """Writes states of one rank into one folder.

    >>> writer = CheckpointWriter(Path("step_4.tmp"), in_background=True)
    >>> writer.add({"weights": tensor}, Path("step_4.tmp/weights.pt"))  # copies; the tensor may change now
    >>> writer.close()
    >>> writer.report  # None until everything is on disk
    """

    def __init__(self, folder: Path, *, in_background: bool) -> None:
        """Without `in_background` every state is written at once, and its copy is freed before the next."""
        self.folder = folder
        self._in_background = in_background
        self._waiting: deque[tuple[Any, Path]] = deque()
        self._files: dict[str, FileRecord] = {}
        self._failure: str | None = None
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def add(self, state: Any, file: Path) -> None:
        """Take a state as it is now. What the disk refuses is noted in the report and never raised here.

        Ranks save in step with each other: an error in one would leave the others waiting for it.
        """
        self._waiting.append((on_host(state), file))
        if not self._in_background:
            self._write_all()

    def close(self) -> None:
        """Nothing more is added."""
        self._thread.start()

    def join(self) -> None:
        """Wait until everything is written, or has failed."""
        self._thread.join()

    @property
    def report(self) -> WriteReport | None:
        """What was written; None while it is being written. Raises what is not the fault of the disk."""
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return WriteReport(dict(self._files), self._seconds, self._failure)

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException as error:  # noqa: BLE001 - raised by `report`, in the thread of the caller
            self._error = error

    def _write_all(self) -> None:
        start = time.monotonic()
        while self._waiting:
            state, file = self._waiting.popleft()
            try:
                if self._failure is None:
                    self._files[str(file.relative_to(self.folder))] = save_durably(state, file)
            except OSError as error:
                if not is_disk_error(error):
                    raise
                self._failure = f"{type(error).__name__}: {error.strerror}: {file.name}"
        self._seconds += time.monotonic() - start


class WriterEngine:
    """What DeepSpeed takes for its checkpoint engine while it saves: hands every state to a writer.

    It answers the calls of `deepspeed.runtime.checkpoint_engine.CheckpointEngine` that saving makes. None of them
    touches the disk: an error there in one rank would leave the others waiting at DeepSpeed's next barrier.
    """

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


def on_host(state: Any) -> Any:
    """A copy that later training leaves alone: tensors in CPU memory, of exactly their own elements.

    Tensors that are views of the same elements (tied weights) stay so. Containers keep their kind.
    """
    return _copied(state, {})


def _copied(state: Any, seen: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(state, Tensor):
        place = (state.device, state.data_ptr(), state.dtype, tuple(state.shape), state.stride())
        if place not in seen or not state.numel():
            seen[place] = state.detach().to("cpu", copy=True)
        return seen[place]
    if isinstance(state, dict):
        copied = copy.copy(state)  # with its attributes: the metadata of a module's state
        for key, value in state.items():
            copied[key] = _copied(value, seen)
        return copied
    if type(state) in (list, tuple):
        return type(state)(_copied(value, seen) for value in state)
    return copy.deepcopy(state)


def save_durably(state: Any, file: Path) -> FileRecord:
    """`torch.save`, on disk when it returns; OSError if it does not take everything."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb", buffering=0) as opened:
        target = _ChecksummedFile(opened)
        torch.save(state, target)  # pyright: ignore[reportArgumentType]
        if target.error is not None:
            raise target.error
        os.fsync(opened.fileno())
    return FileRecord(target.num_bytes, target.crc32)


class _ChecksummedFile:
    """Counts what is written; keeps an error for later, since torch's writer does not survive one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0
        self.crc32 = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it."""
        left = memoryview(data)
        try:
            while self.error is None and len(left):
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
        self.num_bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""
