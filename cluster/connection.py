"""Connects to a Ray cluster, or starts one on this machine, and leaves nothing behind."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig

logger = logging.getLogger(__name__)

NAMESPACE = "poweropd"
"""The Ray namespace of all runs."""

CheckNodes = Callable[[list[dict[str, float]], bool], None]


@contextmanager
def connected(config: ClusterConfig, check: CheckNodes) -> Iterator[None]:
    """Enter a connected Ray; `check(resources of each node, is_local)` may refuse it with ValueError."""
    prepare_environment()
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS")
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
    if address is None:
        ray.init(
            num_cpus=config.num_cpus,
            object_store_memory=int(config.object_store_gib * 2**30),
            include_dashboard=False,
            **common,
        )
    else:
        try:
            ray.init(address=address, **common)
        except ConnectionError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"cluster.address: no Ray answers at {address}: {reason}") from error
    try:
        _protect_token()
        check([node["Resources"] for node in ray.nodes() if node["Alive"]], address is None)
        yield
    finally:
        ray.shutdown()


@contextmanager
def attached(address: str) -> Iterator[Any]:
    """Enter a Ray that is there already, as one more process of its user; gives the `ray` module.

    ConnectionError (or a RuntimeError) if none answers. The token is that of the user's `~/.ray/auth_token`.
    """
    prepare_environment()
    import ray

    ray.init(address=address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


def is_local(config: ClusterConfig) -> bool:
    """True if the run starts a Ray of this machine alone, which does not grow."""
    return config.address is None and "RAY_ADDRESS" not in os.environ


def prepare_environment() -> None:
    """What Ray reads at import: authentication on, no accelerator masking surprises, no usage reports."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # a local Ray listens on all interfaces
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _protect_token() -> None:
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_mode & 0o077:
        token.chmod(0o600)  # Ray creates it readable for everyone
