"""Every benchmark is in the table of benchmarks/README.md, and quick ones know the options of their call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quick import QUICK

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))


def test_every_script_has_a_row_of_the_readme() -> None:
    rows = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(SCRIPTS) > 5
    missing = [name for name in SCRIPTS if not any(f"benchmarks/{name}.py" in row for row in rows)]
    assert not missing, f"benchmarks/README.md has no row for {missing}"


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_benchmark_knows_the_options_that_it_is_called_with(name: str) -> None:
    line = [sys.executable, f"benchmarks/{name}.py", "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert name in SCRIPTS
    for argument in QUICK[name]:
        option = re.match(r"--[\w-]+", argument)
        assert option is None or option[0] in done.stdout, argument


def test_only_listed_benchmarks_are_run() -> None:
    line = [sys.executable, "benchmarks/quick.py", "nothing"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "nothing is not among" in done.stderr
