"""Connects to a Ray cluster, or starts one on this machine, and leaves nothing behind.

A Ray of our own asks for a token and listens on the loopback interface alone.
"""

import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import ray_private
from settings.cluster import ClusterConfig
from settings.exit_codes import FailedError

logger = logging.getLogger(__name__)

NAMESPACE = "poweropd"
"""The Ray namespace of all runs."""

LOOPBACK = "127.0.0.1"
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": LOOPBACK}
"""What keeps the processes of a local Ray on the loopback interface, where torch and vLLM listen by themselves."""
CONNECT_TIMEOUT_S = 5.0
REASON_LENGTH = 200

JOBS_API, JOBS_API_VARIABLE = "http://127.0.0.1:8265", "RAY_API_SERVER_ADDRESS"
JOBS_API_FORM = re.compile(r"https?://[\w.-]+(:\d{1,5})?(/[\w./-]*)?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?")
TOKEN_ADVICE = "the token is read from RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token"

CheckNodes = Callable[[list[dict[str, float]], bool], None]


@contextmanager
def connected(config: ClusterConfig, check: CheckNodes) -> Iterator[None]:
    """Enter a connected Ray; `check(resources of each node, is_local)` may refuse it with ValueError."""
    prepare_environment()
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS")
    try:
        if address is None:
            _start_local(config)
        else:
            try:
                _connect(address)
            except ConnectionError as error:
                raise ValueError(f"cluster.address: {error}") from error
        check([node["Resources"] for node in ray.nodes() if node["Alive"]], address is None)
        yield
    finally:
        ray.shutdown()


@contextmanager
def attached(address: str) -> Iterator[Any]:
    """Enter a Ray that is there already, as one more process of its user; gives the `ray` module.

    ConnectionError, one line, if none answers or it does not take the token.
    """
    prepare_environment()
    import ray

    try:
        _connect(address)
        yield ray
    finally:
        ray.shutdown()


def cluster_address() -> str:
    """Address of the connected Ray as another process reaches it, on another node too if there are any."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    here = ray.util.get_node_ip_address()
    return f"{here}:{port}" if host == LOOPBACK else address


def jobs_api(given: str | None, *, needs_token: bool = True) -> str:
    """The address of a Ray cluster's jobs API: `given`, else of the environment, else of this machine.

    Ray's client takes it from now on, whatever RAY_ADDRESS says. ValueError if it has another form, or if this
    process has no token.
    """
    prepare_environment()
    source = "--address" if given is not None else JOBS_API_VARIABLE
    address = (given or os.environ.get(JOBS_API_VARIABLE) or JOBS_API).rstrip("/")
    if not JOBS_API_FORM.fullmatch(address):
        host = re.sub(r"^[a-z]*://|:\d*$", "", address)
        nearest = f"http://{host}:8265" if re.fullmatch(r"[\w.-]+", host) and host != "auto" else JOBS_API
        raise ValueError(
            f"{source} must be that of Ray's jobs API, http://HOST:8265, got {address!r} (nearest valid: "
            f"{nearest})"
        )
    os.environ[JOBS_API_VARIABLE] = address  # Ray's client would prefer RAY_ADDRESS to its argument
    if needs_token and os.environ["RAY_AUTH_MODE"].lower() == "token":
        _check_there_is_a_token()
    return address


def _check_there_is_a_token() -> None:
    from ray.exceptions import AuthenticationError

    try:
        ray_private.check_there_is_a_token()
    except AuthenticationError as error:
        raise ValueError(f"no token for the cluster: {TOKEN_ADVICE}") from error


def is_local(config: ClusterConfig) -> bool:
    """True if the run starts a Ray of this machine alone, which does not grow."""
    return config.address is None and "RAY_ADDRESS" not in os.environ


def prepare_environment() -> None:
    """What Ray reads at import: authentication on, no accelerator masking surprises, no usage reports."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _start_local(config: ClusterConfig) -> None:
    import ray

    if os.environ["RAY_AUTH_MODE"].lower() != "token":
        logger.warning("RAY_AUTH_MODE is not token: every user of this machine can run code in this Ray")
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        ensure_token(os.environ.get("RAY_AUTH_TOKEN_PATH"))
    with _environment(ON_LOOPBACK), ray_private.keeping_loopback(), ray_private.keeping_signals():
        try:
            ray.init(
                num_cpus=config.num_cpus,
                object_store_memory=int(config.object_store_gib * 2**30),
                include_dashboard=config.dashboard,
                dashboard_host=config.dashboard_host,
                **_common(),
            )
        except ValueError:
            raise
        except Exception as error:  # Ray raises just that when its processes take too long to start
            raise FailedError(f"Ray did not start on this machine: {_one_line(str(error))}") from error
    if (here := ray.util.get_node_ip_address()) != LOOPBACK:
        raise RuntimeError(f"this version of Ray listens at {here}, not on the loopback interface alone")


def _connect(address: str) -> None:
    """Connect to a Ray; ConnectionError with the reason in one line."""
    import ray
    from ray.exceptions import AuthenticationError

    try:
        _check_listens(address)
        if os.environ["RAY_AUTH_MODE"].lower() == "token":
            ray_private.check_there_is_a_token()
        ray_private.check_token(address, timeout_s=CONNECT_TIMEOUT_S)
        with ray_private.keeping_loopback(), ray_private.keeping_signals():
            ray.init(address=address, **_common())
    except AuthenticationError as error:
        raise ConnectionError(
            f"the Ray at {address} was not joined: {_one_line(error.message)} (the token is read from "
            "RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token)"
        ) from error
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"no Ray answers at {address}: {_one_line(str(error))}") from error


def _check_listens(address: str) -> None:
    """OSError if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


def _common() -> dict[str, Any]:
    ray_private.log_messages(lambda text: logger.info("Ray: %s", _one_line(text)))
    return {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:REASON_LENGTH]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Have these variables for processes that start meanwhile, unless they are set already."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def ensure_token(path: str | None = None) -> Path:
    """Make the file of the token if there is none, and return it; by default Ray's own.

    Only its user can read it, from the moment it exists; Ray would make it readable for everyone. A file that
    others can read is closed to them; its token stays.
    """
    token = Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not token.exists():
        _create(token)
    if token.stat().st_mode & 0o077:
        token.chmod(0o600)
    return token


def _create(token: Path) -> None:
    """Write the whole file beside its place and link it there: of several processes, one makes the token."""
    part = token.with_name(f".{token.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(part, token)
    except FileExistsError:  # another process was faster
        return
    finally:
        part.unlink()
