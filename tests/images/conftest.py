"""The tests of this folder look at an image that `make image-test` has built: without one none is collected."""

import os
from pathlib import Path

import pytest

from tests.images.build import IMAGE, Image

collect_ignore_glob = [] if IMAGE in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def image() -> Image:
    """The image that was built."""
    return Image.read(Path(os.environ[IMAGE]))
