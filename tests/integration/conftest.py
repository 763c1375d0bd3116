"""A local Ray for the tests of this folder, started once; and namespaces for those that are `isolated`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.connection import connected, prepare_environment
from settings.cluster import ClusterConfig

ROOT = Path(__file__).resolve().parents[2]

prepare_environment()  # before a test module imports ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of 16 logical CPUs whose workers import our packages and the tests' own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(ClusterConfig(num_cpus=16, object_store_gib=0.2), lambda nodes, is_local: None):
            yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `isolated` in namespaces of its own."""
    from tests.integration.namespaces import INSIDE, run_isolated

    if pyfuncitem.get_closest_marker("isolated") is None or INSIDE in os.environ:
        return None
    run_isolated(pyfuncitem.nodeid)
    return True
