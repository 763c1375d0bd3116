"""Everything that the run takes from Ray beyond its public API, for the one version that was read and tried.

`tests/unit/test_ray_private.py` fails when the pin moves or a name vanishes: read the new version's code then, and
raise `VERSION`. Ray reads its environment when it is imported, so every function here imports it by itself.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.util.placement_group import PlacementGroup

VERSION = "2.60.0"

ANY_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call that every Ray head answers."""

NO_WORKER = "ff" * 28
"""The worker id of an actor that never started."""


# -- connection and authentication --------------------------------------------------------------------------


@contextmanager
def keeping_loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for what it is: it replaces it by an address that other machines can reach.

    With 127.0.0.1 as a node's address all of Ray's ports are on the loopback interface. On macOS and Windows that
    is Ray's default, by this switch (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, which is read once, at import).
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Leave SIGTERM to whoever has it, and let a local Ray outlive the terminal that the run was started in.

    Ray replaces the handler by ones that end the process at once. What it starts is of the terminal's process
    group: it blocks SIGINT there, but not the SIGHUP of a terminal that is closed.
    """
    from ray._private import utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda sigterm_handler: None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def log_messages(log: Callable[[str], object]) -> None:
    """Give what Ray says of dead workers and nodes to a log: it prints it, many lines above a live view."""
    from ray._private import worker

    def to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            log(str(line))

    worker.print_to_stdstream = to_log


def check_there_is_a_token() -> None:
    """AuthenticationError if Ray is to authenticate and this process has no token."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(create_token_if_missing=False)


def check_token(address: str, *, timeout_s: float) -> None:
    """AuthenticationError if the Ray at HOST:PORT, or found with `auto`, does not take this process's token.

    Ray itself says so in twenty lines of its log, and then that the connection failed.
    """
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.services import get_ray_address_from_environment
    from ray.exceptions import AuthenticationError

    found = get_ray_address_from_environment("auto", None) if address == "auto" else address
    if found is None or "://" in found:
        return
    headers = tuple((name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items())
    with grpc.insecure_channel(found, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ANY_CALL)(b"", timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:  # with any other code, e.g. of a Ray that encrypts, it is Ray's turn
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:  # pyright: ignore[reportAttributeAccessIssue]
                raise AuthenticationError("it does not take the token that it was given") from error


# -- placement, streams and actors --------------------------------------------------------------------------


def placement_group_near(bundle: dict[str, float], node_id: str | None) -> "PlacementGroup":
    """A group of one bundle on this node if it has capacity; Ray takes such a wish with this strategy only."""
    from ray.util.placement_group import placement_group

    return placement_group([bundle], strategy="STRICT_PACK", _soft_target_node_id=node_id)


def streaming(num_ahead: int) -> dict[str, Any]:
    """Options of a call that yields references, at most so many before they are taken."""
    return {"num_returns": "streaming", "_generator_backpressure_num_objects": num_ahead}


def may_autoscale() -> bool:
    """Whether the connected cluster's head is meant for autoscaler v2.

    Ray's state does not hold which types of node an autoscaler could start. KubeRay marks clusters whose groups
    have fixed sizes, too.
    """
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return is_autoscaler_v2(fetch_from_server=True)


def workers_of_job(job_id: str) -> list[str]:
    """The ids of the worker processes that held the actors of a job, as the connected cluster remembers.

    The public way needs the dashboard, which may not run.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor = state._connect_and_get_accessor()
    rows = accessor.get_actor_table(ray.JobID.from_hex(job_id), None)
    read: Any = gcs_pb2
    found = {read.ActorTableData.FromString(row).address.worker_id.hex() for row in rows}
    return sorted(found - {"", NO_WORKER})


# -- jobs ---------------------------------------------------------------------------------------------------


def sent_files(root: Path, excludes: Sequence[str]) -> dict[Path, int]:
    """The files that Ray sends of a working directory, relative to it, with their sizes in bytes."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[Path, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    unsent = [*get_runtime_env_default_excludes(), *excludes]
    _dir_travel(root, [_get_excludes(root, unsent)], add, include_gitignore=True)
    return sizes


def jobs_client(address: str, timeout_of: Callable[[str], tuple[float, float]]) -> "JobSubmissionClient":
    """Ray's client of the jobs API, which otherwise waits without limit.

    `timeout_of(HTTP method)`: seconds to connect, and to be answered.
    """
    from ray.job_submission import JobSubmissionClient

    class LimitedClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=timeout_of(method), **options)

    return LimitedClient(address)
