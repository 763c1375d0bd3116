"""The environment of a peer's packages: made once, with a stamp that says which pins it holds completely."""

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".peer"
PINS = Path(__file__).resolve().parent / "peer_trl.txt"

Install = Callable[[Path, list[str]], None]
"""Makes an environment in a folder that does not exist, with these pins."""


def ready_python(install: Install, *, folder: Path = FOLDER, pins: Path = PINS) -> Path:
    """Return the interpreter of an environment that holds the pins.

    One that is complete is taken as it is. One without the stamp of these pins (installing it was interrupted, or
    the pins have changed) is removed and made anew.
    """
    stamp, wanted = folder / "complete", fingerprint(pins)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        if folder.exists():
            shutil.rmtree(folder)
        install(folder, read_pins(pins))
        stamp.write_text(wanted, encoding="utf-8")
    return python_of(folder)


def python_of(folder: Path = FOLDER) -> Path:
    """The interpreter of the environment."""
    return folder / "bin" / "python"


def fingerprint(pins: Path) -> str:
    """What the stamp says: the Python that made the environment, and a digest of the pins."""
    return f"python {platform.python_version()} {hashlib.sha256(pins.read_bytes()).hexdigest()}\n"


def read_pins(pins: Path) -> list[str]:
    """The requirements of the file, without comments."""
    lines = (line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip_install(*, extra_index_url: str | None) -> Install:
    """An `Install` with pip. `extra_index_url` is for where pip's own index has no CPU build of torch."""
    index = [] if extra_index_url is None else ["--extra-index-url", extra_index_url]

    def install(folder: Path, pins: list[str]) -> None:
        print(f"making {folder} with {', '.join(pins)}: about a minute", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--no-input", *index]
        torch = [pin for pin in pins if pin.startswith("torch==")]
        for wanted in (torch, pins):  # torch first: nothing else then asks for another build of it
            subprocess.run([*pip, *wanted], check=True, stdout=sys.stderr)

    return install
