"""The programs that check the files for deployment."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def validator(name: str) -> str:
    """Path of a program in .tools/bin, beside this Python, or on the PATH; without it the test is skipped."""
    for folder in (ROOT / ".tools" / "bin", Path(sys.executable).parent):
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: tests/fetch_validators.sh fetches it")
    return found


def run(*line: str, timeout_s: float = 120) -> str:
    """The output of a program, which must succeed."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}{done.stderr}"
    return done.stdout
