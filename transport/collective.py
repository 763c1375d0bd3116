"""One process's place in a group that broadcasts weights from its rank 0: a communicator of its own.

It has nothing to do with the default group of torch.distributed, in which the learner's ranks meet. Every call has
a limit in seconds, whatever the library below does: it runs in a thread, and a thread that does not come back is
left behind. After an error or a limit the group is of no use: a new one must be formed, by all members.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendezvous:
    """Where and how the members of one group meet. Rank 0 is the learner's first rank and listens there."""

    backend: str  # gloo, nccl
    address: str
    port: int
    name: str  # no other group has it
    world_size: int
    timeout_s: float
    """Limit of forming the group, and of one broadcast of a weight set."""


class BroadcastGroup:
    """A formed group. Building it blocks until all members have come.

    >>> group = BroadcastGroup(rendezvous, rank=1)   # on rank 0 at the same time: rank=0
    >>> deadline = time.monotonic() + 60
    >>> group.broadcast(bucket, deadline)         # uint8; rank 0 sends it, the others get it in place
    """

    def __init__(self, rendezvous: Rendezvous, rank: int) -> None:
        """Join; TimeoutError or RuntimeError if not all members have come within the rendezvous's limit."""
        self._rendezvous = rendezvous
        deadline = time.monotonic() + rendezvous.timeout_s
        self._backend: Backend = within(
            lambda: BACKENDS[rendezvous.backend](rendezvous, rank), deadline, f"group {rendezvous.name}: forming"
        )
        self.broadcast(np.zeros(1, np.uint8), deadline)  # NCCL connects with the first call

    def broadcast(self, bucket: np.ndarray, deadline: float) -> None:
        """Send or receive one bucket until `deadline` (of time.monotonic); TimeoutError or RuntimeError."""
        what = f"group {self._rendezvous.name}: a broadcast of {bucket.nbytes} bytes"
        within(lambda: self._backend.broadcast(bucket, deadline), deadline, what)

    def close(self) -> None:
        """Leave; a member that still waits for this one fails."""
        try:
            what = f"group {self._rendezvous.name}: leaving"
            within(self._backend.close, time.monotonic() + CLOSE_TIMEOUT_S, what)
        except (RuntimeError, TimeoutError) as error:
            logger.warning("%s", error)


class Backend(Protocol):
    """A library's broadcast."""

    def broadcast(self, bucket: np.ndarray, deadline: float) -> None:
        """Send from rank 0, receive elsewhere."""
        ...

    def close(self) -> None:
        """End the connections."""
        ...


class GlooBackend:
    """TCP between the hosts."""

    def __init__(self, rendezvous: Rendezvous, rank: int) -> None:
        from torch.distributed import ProcessGroupGloo

        gloo: Any = ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timedelta(seconds=rendezvous.timeout_s)
        options._devices = [gloo.create_device(hostname=_own_address(rendezvous, rank))]
        self._store = _store(rendezvous, rank)
        self._group: Any = gloo(self._store, rank, rendezvous.world_size, options)

    def broadcast(self, bucket: np.ndarray, deadline: float) -> None:
        """Straight from the array's memory, and into it."""
        self._group.broadcast([_tensor(bucket)], _options(deadline)).wait()

    def close(self) -> None:
        """The group goes with its last reference."""
        self._group = self._store = None


class NcclBackend:
    """Between the first GPUs of the members, by way of a buffer there."""

    def __init__(self, rendezvous: Rendezvous, rank: int) -> None:
        import torch
        import torch.distributed

        nccl: Any = getattr(torch.distributed, "ProcessGroupNCCL")  # noqa: B009 (absent in builds without CUDA)
        options = nccl.Options()
        options._timeout = timedelta(seconds=10 * rendezvous.timeout_s)  # ours ends a call before NCCL's watchdog
        self._rank = rank
        self._device = torch.device("cuda", 0)
        self._store = _store(rendezvous, rank)
        with _errors_end_no_process():
            self._group: Any = nccl(self._store, rank, rendezvous.world_size, options)

    def broadcast(self, bucket: np.ndarray, deadline: float) -> None:
        """Copy to the GPU, broadcast, and copy back where it was received."""
        import torch

        with torch.cuda.device(self._device):
            host = _tensor(bucket)
            on_gpu = host.to(self._device) if self._rank == 0 else torch.empty_like(host, device=self._device)
            work = self._group.broadcast([on_gpu], _options(deadline))
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise TimeoutError("a member did not take part in time")
                time.sleep(POLL_S)
            work.wait()
            if self._rank != 0:
                host.copy_(on_gpu)

    def close(self) -> None:
        """Abort what is under way."""
        self._group.abort()


POLL_S = 0.001
CLOSE_TIMEOUT_S = 5.0
BACKENDS: dict[str, Callable[[Rendezvous, int], Backend]] = {"gloo": GlooBackend, "nccl": NcclBackend}


@contextlib.contextmanager
def _errors_end_no_process() -> Iterator[None]:
    """For NCCL groups that are made meanwhile. By default torch ends a process whose group has lost a member: the
    learner would die with any engine."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def within(call: Callable[[], T], deadline: float, what: str) -> T:
    """Return what `call` returns, or raise what it raises; TimeoutError naming `what` if it takes too long."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread of the caller)
            outcome.set_exception(error)

    threading.Thread(target=run, name="weight-group", daemon=True).start()
    try:
        return outcome.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        raise TimeoutError(f"{what} did not end in time") from error
    except RuntimeError as error:
        raise RuntimeError(f"{what}: {error}") from error


def _store(rendezvous: Rendezvous, rank: int) -> Any:
    import torch.distributed

    size, limit_s = rendezvous.world_size, rendezvous.timeout_s
    store = open_store(rendezvous.address, rendezvous.port, is_host=rank == 0, world_size=size, timeout_s=limit_s)
    prefixed: Any = torch.distributed.PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    return prefixed(rendezvous.name, store)


def _own_address(rendezvous: Rendezvous, rank: int) -> str:
    """This host's address as the others reach it: not what its name resolves to, which may be the loopback."""
    if rank == 0:
        return rendezvous.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rendezvous.address, rendezvous.port))  # sends nothing; picks the interface of the route
        return probe.getsockname()[0]


def _options(deadline: float) -> Any:
    from torch.distributed import distributed_c10d

    options: Any = distributed_c10d.BroadcastOptions()
    options.rootRank, options.rootTensor, options.asyncOp = 0, 0, True
    options.timeout = timedelta(seconds=max(0.001, deadline - time.monotonic()))
    return options


def _tensor(bucket: np.ndarray) -> Any:
    """The array's own memory. Only a receiver writes to it, so that a read-only one can be sent."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(bucket)


def open_store(address: str, port: int, *, is_host: bool, world_size: int, timeout_s: float) -> Any:
    """A key-value store by which the processes of a group find each other, at `address` and nowhere else.

    Left to itself torch's store listens on every interface, to whoever connects. Blocks, up to the limit, until
    the process that `is_host` has opened it.
    """
    import torch.distributed

    store: Any = torch.distributed.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s), "wait_for_workers": False}
    if is_host:
        options["master_listen_fd"] = _listener(address, port).detach()
    return store(address, port, world_size, is_master=is_host, **options)


def _listener(address: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(socket.SOMAXCONN)
    return listener
