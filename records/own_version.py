"""The version of this software."""

import tomllib
from importlib.metadata import version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def own_version() -> str:
    """What the checkout or image says that this code is from; of an installed copy, what was installed."""
    if PYPROJECT.is_file():
        return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
    return version("poweropd")
