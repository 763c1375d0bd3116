"""Profiles of hypothesis, and which tests share a process when several run at a time (`make test`).

`--hypothesis-profile deep` tries thirty times as many examples.
"""

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import DEEP, QUICK

settings.register_profile("quick", max_examples=QUICK, deadline=None)
settings.register_profile("deep", max_examples=DEEP, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, unless they are of a larger group; the largest group goes first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}/{item.path.stem}"))
    items.sort(key=lambda item: "runs" not in group_of(item))


def group_of(item: pytest.Item) -> str:
    """The group of a test."""
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return marker.args[0]
