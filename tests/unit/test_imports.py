"""What is checked before a run starts loads quickly, and before Ray reads its environment."""

import subprocess
import sys

import pytest

from tests.unit.layout import ROOT


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("settings.run, settings.load", ["torch", "vllm", "ray", "transformers", "deepspeed"]),
        ("commands.evaluate, inputs.inputs", ["ray"]),  # it reads its environment when it is imported
    ],
)
def test_what_is_checked_first_loads_without_heavy_libraries(modules: str, heavy: list[str]) -> None:
    program = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
