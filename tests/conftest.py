"""Profiles of hypothesis, and which file begins where two processes share the tests (`make test`).

`--hypothesis-profile deep` tries thirty times as many examples.
"""

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import DEEP, QUICK

settings.register_profile("quick", max_examples=QUICK, deadline=None)
settings.register_profile("deep", max_examples=DEEP, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the whole runs: they take longest, and the other files fit beside them."""
    items.sort(key=lambda item: item.path.name != "test_run.py")
